"""Folders as transformers 4 left them before safetensors: pytorch_model.bin, whole and in shards, links included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import OWN_FILES, Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

STEPS = [10, 20, 30]
INDEX = "pytorch_model.bin.index.json"


def make_model(dtype: torch.dtype = torch.float32, tied: bool = True) -> Any:
    """Return a small GPT-2, its head tied to its embeddings or not."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=10, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(13)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def save(model: Any, folder: Path, step: int, shard_size: str | None) -> None:
    """Write the model as transformers 4 did with safe_serialization=False: torch.save, and an index over shards."""
    from huggingface_hub import split_torch_state_dict_into_shards

    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    state = model.state_dict()  # tied tensors under both names, as torch.save keeps them
    if shard_size is None:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        split = split_torch_state_dict_into_shards(
            state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=shard_size
        )
        assert len(split.filename_to_tensors) > 2
        for name, members in split.filename_to_tensors.items():
            torch.save({member: state[member] for member in members}, folder / name)
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    torch.save({"state": {}}, folder / "optimizer.pt")
    torch.save({"args": 1}, folder / "training_args.bin")
    torch.save({"rng": 1}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 16}))


def train(run: Path, shard_size: str | None, **options: Any) -> list[Tensors]:
    """Train for 30 steps, saving every tenth; return the state dicts."""
    model = make_model(**options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    saved = []
    for step in range(1, STEPS[-1] + 1):
        tokens = torch.randint(2, 10, (4, 8))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            save(model, run / f"checkpoint-{step}", step, shard_size)
            saved.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return saved


@pytest.mark.parametrize("shard_size", [None, "6KB"])
@pytest.mark.parametrize(("tied", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_average_loads(cli: Cli, tmp_path: Path, shard_size: str | None, tied: bool, dtype: torch.dtype):
    """A run in .bin files gives a folder of safetensors that from_pretrained loads, with the average in it."""
    from transformers import AutoModelForCausalLM

    saved = train(tmp_path / "run", shard_size, dtype=dtype, tied=tied)
    done = cli("average", "run", "--half-life", "15ba")
    assert (done.code, done.out) == (0, "ema-15ba\n"), done
    written = tmp_path / "ema-15ba"
    shards = {name for name in names(written) if name.endswith(".safetensors")}
    assert names(written) - shards - {"model.safetensors.index.json"} == {"config.json", *OWN_FILES}
    assert (len(shards) > 2) == (shard_size is not None)
    stored = {name: tensor for shard in shards for name, tensor in load_file(written / shard).items()}
    exact = recurrence(saved, STEPS, 15)
    assert_rounds(stored, {name: exact[name] for name in stored})
    assert set(exact) - set(stored) <= {"lm_head.weight"}
    model, told = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(told.values()), told
    assert_rounds(model.state_dict(), exact)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied


def test_index_of_the_output_names_every_tensor_s_shard(cli: Cli, tmp_path: Path):
    """The shards are those of the newest checkpoint under safetensors' names, and the index is true."""
    train(tmp_path / "run", "6KB")
    assert cli("average", "run", "--half-life", "15ba", "-o", "out").code == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in sorted(set(index.values())):
        assert set(load_file(tmp_path / "out" / shard)) == {name for name, place in index.items() if place == shard}
    theirs = json.loads((tmp_path / "run" / "checkpoint-30" / INDEX).read_text())["weight_map"]
    assert len(set(index.values())) == len(set(theirs.values()))


def test_clocks_and_what_is_no_weight(cli: Cli, tmp_path: Path):
    """Clocks come from trainer_state.json; optimizer.pt and training_args.bin are not taken for checkpoints."""
    train(tmp_path / "run", "6KB")
    told = cli("inspect", "run", "--json").json["run"]
    assert [(each["name"], each["clocks"]) for each in told["checkpoints"]] == [
        (
            f"checkpoint-{step}",
            {"ba": {"value": step, "from": "sidecar"}, "ep": {"value": step / 16, "from": "sidecar"}},
        )
        for step in STEPS
    ]
    assert told["differences"] == []


def test_bin_and_safetensors_in_one_run(cli: Cli, tmp_path: Path):
    """A run that went on under transformers 5 has .bin first and safetensors later: one run, where names agree."""
    saved = train(tmp_path / "run", None, tied=False)
    newest = tmp_path / "run" / "checkpoint-30"
    (newest / "pytorch_model.bin").unlink()
    model = make_model(tied=False)
    model.load_state_dict(saved[-1])
    model.save_pretrained(newest)
    assert "model.safetensors" in names(newest)
    assert cli("average", "run", "--half-life", "15ba", "-o", "out").code == 0
    assert_rounds(load_file(tmp_path / "out" / "model.safetensors"), recurrence(saved, STEPS, 15))


def test_missing_shard(cli: Cli, tmp_path: Path):
    """A checkpoint that lacks a shard is passed over with a warning that names it, and exit 3 by name."""
    saved = train(tmp_path / "run", "6KB")
    newest = tmp_path / "run" / "checkpoint-30"
    shard = sorted(name for name in names(newest) if name.startswith("pytorch_model-"))[1]
    (newest / shard).unlink()
    done = cli("average", "run", "--half-life", "15ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "checkpoint-30" in done.err
    exact = recurrence(saved[:-1], STEPS[:-1], 15)
    stored = load_file(tmp_path / "out.safetensors")
    assert_rounds(stored, {name: exact[name] for name in stored})
    named = cli("average", "run/checkpoint-30", "--half-life", "15ba", "-o", "named.safetensors")
    assert named.code == 3, named
    assert shard in named.err
