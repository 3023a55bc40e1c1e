"""Hugging Face models that Composer trained here and now: averaged to folders that transformers and PEFT load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import OWN_FILES, Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence, require
from tests.trainers.ranks import launch
from tests.trainers.transformers_run import load_clean
from tests.trainers.write_composer_hf import BATCHES, make_llama

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

CLOCKS = list(range(2, BATCHES + 1, 2))
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trainings."""
    for package in ("composer", "transformers", "peft"):
        require(package)
    return launch("write_composer_hf", tmp_path_factory.mktemp("composer_hf") / "written", ranks=1)


def saved(run: Path) -> list[Tensors]:
    """Return `state.model` of a run's checkpoints, oldest first."""
    files = [next(run.glob(f"ep*-ba{batch}-rank0.pt")) for batch in CLOCKS]
    return [torch.load(path, weights_only=False)["state"]["model"] for path in files]


def expected(run: Path) -> dict[str, torch.Tensor]:
    """Return Composer's average, under the names without its wrapper's."""
    return {name.removeprefix("model."): tensor for name, tensor in recurrence(saved(run), CLOCKS, 4).items()}


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_tied_model_loads_with_its_tokenizer(cli: Cli, written: Path, tmp_path: Path):
    """`average RUN --half-life 4ba`: a folder whose model, tied, and tokenizer load, no name missing or unexpected."""
    done = cli("average", written / "gpt2", "--half-life", "4ba")
    assert (done.code, done.out) == (0, "ema-4ba\n"), done
    folder = tmp_path / "ema-4ba"
    assert names(folder) == {"model.safetensors", "config.json", *TOKENIZER, *OWN_FILES}
    exact = expected(written / "gpt2")
    assert_rounds(load_file(folder / "model.safetensors"), exact)
    model = load_clean(folder)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.lm_head.weight is model.transformer.wte.weight
    assert_rounds({name: model.state_dict()[name] for name in exact}, exact)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer("a h b")["input_ids"], tokenizer.chat_template) == ([2, 9, 3], "{{ messages }}")
    logits = model(**tokenizer("a h b", return_tensors="pt", return_token_type_ids=False)).logits
    assert torch.isfinite(logits).all()


def test_configuration_is_what_transformers_saves(cli: Cli, written: Path, tmp_path: Path):
    """Loaded and saved by transformers, the configuration says the same."""
    assert cli("average", written / "gpt2", "--half-life", "4ba").code == 0
    load_clean(tmp_path / "ema-4ba").save_pretrained(tmp_path / "again")
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ema-4ba", "again"))
    assert one == other


def test_composer_s_own_tools_find_the_same(written: Path, tmp_path: Path, cli: Cli):
    """The tokenizer's files hold what Composer kept of them."""
    assert cli("average", written / "gpt2", "--half-life", "4ba").code == 0
    kept = torch.load(written / "gpt2" / "latest-rank0.pt", weights_only=False)["state"]["integrations"]["huggingface"]
    assert set(kept["tokenizer"]) == TOKENIZER
    for name, part in kept["tokenizer"].items():
        text = (tmp_path / "ema-4ba" / name).read_text()
        assert (json.loads(text) if name.endswith(".json") else text) == part["content"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_untied_model_without_a_tokenizer(cli: Cli, written: Path, tmp_path: Path, dtype: str):
    """Tensors alone, in bfloat16 or as --dtype says: config.json says so, and the model loads in it, in shards too."""
    options = ["--dtype", dtype, "--max-shard-size", "4KB", "--half-life", "4ba"]
    done = cli("average", written / "llama", *options)
    assert (done.code, done.out) == (0, "ema-4ba\n"), done
    folder = tmp_path / "ema-4ba"
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert (folder / "model.safetensors.index.json").exists()
    model, exact = load_clean(folder), expected(written / "llama")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {getattr(torch, dtype)}
    assert_rounds(model.state_dict(), exact)


def test_adapter_loads_on_its_model(cli: Cli, written: Path, tmp_path: Path):
    """A LoRA that Composer trained comes out as PEFT saves one, and loads on the model that it adapts."""
    from peft import PeftModel
    from safetensors import safe_open

    done = cli("average", written / "adapter", "--half-life", "4ba")
    assert (done.code, done.out) == (0, "ema-4ba\n"), done
    folder = tmp_path / "ema-4ba"
    assert {"adapter_model.safetensors", "adapter_config.json", *TOKENIZER, *OWN_FILES} <= names(folder)
    model = PeftModel.from_pretrained(make_llama(), folder)
    exact = {
        name.removeprefix("model."): each for name, each in recurrence(saved(written / "adapter"), CLOCKS, 4).items()
    }
    held = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    assert_rounds(held, exact)
    model.save_pretrained(tmp_path / "again")
    with (
        safe_open(folder / "adapter_model.safetensors", "pt") as ours,
        safe_open(tmp_path / "again" / "adapter_model.safetensors", "pt") as theirs,
    ):
        assert sorted(ours.keys()) == sorted(theirs.keys())


def test_single_file_keeps_composer_s_names(cli: Cli, written: Path, tmp_path: Path):
    """One file loads into Composer's model: its names are those of `state.model`."""
    assert cli("average", written / "gpt2", "--half-life", "4ba", "-o", "out.safetensors").code == 0
    assert sorted(load_file(tmp_path / "out.safetensors")) == sorted(saved(written / "gpt2")[0])
