"""Folders of the Hugging Face Trainer with DeepSpeed's in them: whose weights are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import NoSuchWeights, UsageError
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Unit
from tests.conftest import OWN_FILES, Cli, oracle
from tests.formats.reading import read_all, stored_bytes
from tests.formats.zero.make import Saved, Tensors, small

MASTERS = ReadOptions(masters=True)


def write(folder: Path, saved: Saved, own: Tensors | None = None, name: str = "model", state: bool = True) -> Path:
    """Write a checkpoint of the Trainer's, with a model of its own if there is one."""
    saved.write(folder / f"global_step{saved.step}")
    (folder / "latest").write_text(f"global_step{saved.step}")
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    if state:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": saved.step, "epoch": saved.step / 10}))
    if own is not None:
        save_file(own, folder / f"{name}.safetensors", metadata={"format": "pt"})
    return folder


def emptied(tensors: Tensors) -> Tensors:
    """Return the placeholders that a rank of ZeRO-3 has."""
    return {name: torch.zeros(0, dtype=tensor.dtype) for name, tensor in tensors.items()}


def cloned(tensors: Tensors) -> Tensors:
    """Return tensors of which none is another's."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("own", [None, emptied], ids=["no model", "an empty model"])
def test_stage_3_is_put_together_into_a_folder_that_loads(own: object, cli: Cli, tmp_path: Path) -> None:
    """The output has the weights of DeepSpeed's folder, and the files that lie beside it."""
    saves = [small(step) for step in (10, 20, 30)]
    for saved in saves:
        write(tmp_path / "run" / f"checkpoint-{saved.step}", saved, emptied(saved.model) if own else None)
    assert cli("average", "run", "--half-life", "10ba", "-o", "out", "--update-interval", "every").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", *OWN_FILES}
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in oracle([saved.masters for saved in saves], [0.25, 0.25, 0.5]).items():
        expected = value.to(saves[-1].model[name].dtype)
        assert written[name].dtype == expected.dtype
        torch.testing.assert_close(written[name], expected, rtol=2**-8, atol=1e-6)
    assert cli("verify", "out", "--against", "run").code == 0
    assert cli("average", "run", "--half-life", "10ba", "-o", "wide", "--masters").code == 0
    assert load_file(tmp_path / "wide" / "model.safetensors")["a.weight"].dtype == torch.float32


def test_clocks_are_the_trainers(tmp_path: Path) -> None:
    """Epochs and steps come from the Trainer's state; where that is not there, steps from DeepSpeed."""
    checkpoint = open_checkpoint(write(tmp_path / "checkpoint-5", small(5)))
    assert (checkpoint.trainer, checkpoint.name) == ("transformers", "checkpoint-5")
    assert (checkpoint.clock(Unit.BATCH), float(checkpoint.clock(Unit.EPOCH) or 0)) == (5, 0.5)
    assert checkpoint.resumable
    other = open_checkpoint(write(tmp_path / "final", small(7), state=False))
    assert (other.trainer, other.clock(Unit.BATCH)) == ("DeepSpeed", 7)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_trainers_own_model_is_taken_where_it_has_weights(stage: int, tmp_path: Path) -> None:
    """DeepSpeed's folder only serves to resume then; but its float32 weights can be had."""
    saved = small(stage=stage)
    folder = write(tmp_path / "checkpoint-5", saved, cloned(saved.model))
    own = open_checkpoint(folder)
    assert read_all(own.tensors) == {name: stored_bytes(tensor) for name, tensor in saved.model.items()}
    assert any("--masters" in note for note in own.notes)
    masters = open_checkpoint(folder, MASTERS)
    assert read_all(masters.tensors) == {name: stored_bytes(tensor) for name, tensor in saved.masters.items()}


def test_float32_weights_of_an_adapter_are_refused(tmp_path: Path) -> None:
    """DeepSpeed has them under the names of the training, beside the whole base model."""
    folder = write(tmp_path / "checkpoint-5", small(), {"x.lora_A.weight": torch.ones(2, 2)}, "adapter_model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    assert list(open_checkpoint(folder).tensors.specs) == ["x.lora_A.weight"]
    with pytest.raises(NoSuchWeights, match="holds an adapter, whose float32 weights"):
        open_checkpoint(folder, MASTERS)


def test_a_run_of_deepspeeds_own_is_no_checkpoint(tmp_path: Path) -> None:
    """Several saves of DeepSpeed's in a folder, or one without a Trainer's files beside it, are a run."""
    for step in (4, 8):
        small(step).write(tmp_path / "out" / f"global_step{step}")
    (tmp_path / "out" / "config.json").write_text("{}")
    small().write(tmp_path / "one" / "global_step5")
    assert not is_checkpoint_folder(tmp_path / "out")
    assert not is_checkpoint_folder(tmp_path / "one")


def test_there_is_one_model(tmp_path: Path) -> None:
    """A component is refused where there is nothing to choose from."""
    with pytest.raises(UsageError, match="holds one model"):
        open_checkpoint(write(tmp_path / "checkpoint-5", small()), ReadOptions(component="unet"))
