"""Folders of torch.distributed.checkpoint: which tensors are the model's in each trainer's layout, and the clocks."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.errors import CheckpointError, IncompleteCheckpoint, NoSuchWeights, NoWeights, Unfinished
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.formats.dcp.folders import (
    FLAT_OPTIMIZER,
    OPTIMIZER,
    OTHER,
    TITAN,
    W,
    clocks,
    composer,
    holds,
    prefixed,
    refusal,
    timestamp,
)
from tests.formats.dcp_folders import Pieces, save_folder

# What is saved: the state, whose trainer it is, the clocks.
LAYOUTS: dict[str, tuple[dict[str, Any], str | None, dict[str, float]]] = {
    "torchtitan": (TITAN, "torchtitan", {"ba": 8, "tok": 512}),
    "torchtitan, model only": (dict(W), None, {}),
    "app": ({"app": {"model": W, "optim": OPTIMIZER, "step": 8}}, None, {"ba": 8}),
    "model and optimizer": ({"model": W, "optimizer": OPTIMIZER, "step": 8, "epoch": 2}, None, {"ba": 8, "ep": 2}),
    "optim": ({"model": W, "optim": OPTIMIZER, "global_step": 9}, None, {"ba": 9}),
    "state dicts": ({"model_state_dict": W, "optimizer_state_dict": OPTIMIZER, "step": 8}, None, {"ba": 8}),
    "Lightning, state_dict": ({"state_dict": W, "optimizer_0": OPTIMIZER}, None, {}),
    "Lightning, model": ({"model": W, "optimizer_0": OPTIMIZER, "optimizer_1": OPTIMIZER}, None, {}),
    "Composer": (
        {"state": {"model": W, "optimizers": {"Adam": OPTIMIZER}, "timestamp": timestamp(8), "rng": [1]}},
        "Composer",
        {"ep": 1, "ba": 8, "sp": 32},
    ),
    "a model with a part called model": ({"model": prefixed("model.", W), "optim": OPTIMIZER}, None, {}),
    "flat with a part called model": ({**prefixed("model.", W), "head": torch.ones(2)}, None, {}),
    "Megatron's FSDP": (
        {"model": W, "optimizer": OPTIMIZER, "iteration": 8, "checkpoint_version": 3.0, "rng_state": {"(0, 0)": [1]},
         "args": argparse.Namespace(consumed_train_samples=32), "opt_param_scheduler": {"max_lr": 1.0}},
        "Megatron",
        {"ba": 8, "sp": 32},
    ),
    "Megatron": ({**W, "chained_0": FLAT_OPTIMIZER, "rng_state": torch.ones(3), "optimizer": FLAT_OPTIMIZER}, None, {}),
}  # fmt: skip
EXPECTED = {
    "a model with a part called model": prefixed("model.", W),
    "flat with a part called model": {**prefixed("model.", W), "head": torch.ones(2)},
}


@pytest.mark.parametrize("label", LAYOUTS)
def test_the_models_tensors_and_the_clocks(label: str, tmp_path: Path) -> None:
    """Of all that was saved the model's tensors are taken, under the model's own names, and its clocks."""
    state, trainer, expected = LAYOUTS[label]
    checkpoint = open_checkpoint(save_folder(tmp_path / "saved", state))
    assert holds(checkpoint, EXPECTED.get(label, W))
    assert (checkpoint.format, checkpoint.trainer, clocks(checkpoint)) == ("DCP", trainer, expected)
    assert {clock.source for clock in checkpoint.progress.clocks.values()} <= {"file"}
    assert (checkpoint.averaged, checkpoint.notes) == (None, ())


def test_lightning_keeps_its_clocks_beside(tmp_path: Path) -> None:
    """Lightning's folder has its counters in meta.pt; epochs are counted from 0."""
    folder = save_folder(tmp_path / "epoch=2-step=30.ckpt", {"state_dict": W, "optimizer_0": OPTIMIZER})
    torch.save({"epoch": 2, "global_step": 30, "pytorch-lightning_version": "2", "loops": {}}, folder / "meta.pt")
    checkpoint = open_checkpoint(folder)
    assert holds(checkpoint, W)
    assert (checkpoint.trainer, clocks(checkpoint)) == ("Lightning", {"ba": 30, "ep": 3})
    assert folder / "meta.pt" in {file.path for file in checkpoint.files}
    (folder / "meta.pt").unlink()
    error = refusal(folder)
    assert (type(error), str(error)) == (IncompleteCheckpoint, f"{folder}: has no meta.pt, which is written last")


def test_accelerates_folder_within(tmp_path: Path) -> None:
    """Accelerate keeps FSDP's model in a folder of its own, and the Trainer its state beside that."""
    save_folder(tmp_path / "checkpoint_3" / "pytorch_model_fsdp_0", {"model": W})
    save_folder(tmp_path / "checkpoint_3" / "optimizer_0", {"optimizer": OPTIMIZER})
    checkpoint = open_checkpoint(tmp_path / "checkpoint_3")
    assert holds(checkpoint, W)
    assert (checkpoint.name, checkpoint.trainer, clocks(checkpoint)) == ("checkpoint_3", "accelerate", {})
    (tmp_path / "checkpoint_3" / "trainer_state.json").write_text(json.dumps({"global_step": 9, "epoch": 0.5}))
    assert clocks(open_checkpoint(tmp_path / "checkpoint_3")) == {"ba": 9, "ep": 0.5}


def test_olmos_folder_within(tmp_path: Path) -> None:
    """OLMo-core keeps its model in model_and_optim, and says beside it when it is done."""
    save_folder(tmp_path / "step8" / "model_and_optim", {"model": W, "optim": OPTIMIZER})
    error = refusal(tmp_path / "step8")
    assert type(error) is IncompleteCheckpoint
    assert "has no .metadata.json, which is written last" in str(error)
    (tmp_path / "step8" / ".metadata.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "step8")
    assert holds(checkpoint, W)
    assert checkpoint.trainer == "OLMo-core"
    (tmp_path / "step8" / "train").mkdir()
    torch.save({"global_step": 8, "epoch": 1, "global_train_tokens_seen": 4096}, tmp_path / "step8/train/rank0.pt")
    assert clocks(open_checkpoint(tmp_path / "step8")) == {"ba": 8, "tok": 4096}


@pytest.mark.parametrize("name", ["step8-merged", "step8-soup"])
def test_what_olmo_merges_is_an_average_and_not_half_written(name: str, tmp_path: Path) -> None:
    """Its callback saves the model alone, without the state that a checkpoint begins with."""
    folder = tmp_path / name
    save_folder(folder / "model_and_optim", {"model": W})
    checkpoint = open_checkpoint(folder)
    assert "ModelMergeCallback saved it" in str(checkpoint.averaged)
    assert name in str(checkpoint.averaged)
    assert holds(open_checkpoint(folder, ReadOptions(weights="ema")), W)
    (folder / "train").mkdir()
    assert type(refusal(folder)) is IncompleteCheckpoint


def nemo(folder: Path, extra: str = "module.layer._extra_state/shard_0_1") -> Path:
    """Write what NeMo does: a flat model with items that only its modules can read."""
    pieces = Pieces(folder / "weights")
    for name, tensor in prefixed("module.", W).items():
        pieces.add(name, tensor)
    pieces.add("optimizer.state.exp_avg.module.layers.0.weight", torch.ones(2))
    pieces.add_item(extra, b"state of the module")
    pieces.write()
    return folder


def test_nemos_extra_state(tmp_path: Path) -> None:
    """What is no tensor but belongs to the model is refused, unless the user leaves it out; then that is said."""
    folder = nemo(tmp_path / "step=8")
    error = refusal(folder)
    assert type(error) is CheckpointError
    assert "'module.layer._extra_state/shard_0_1' is no tensor" in str(error)
    assert error.hint == "leave it out of the average and of the output: copy='*_extra_state*'"
    checkpoint = open_checkpoint(folder, ReadOptions(copy=("*_extra_state*",)))
    assert holds(checkpoint, W)
    assert checkpoint.trainer == "NeMo"
    assert any("'module.layer._extra_state/shard_0_1'" in note for note in checkpoint.notes)


def test_nemos_marks(tmp_path: Path) -> None:
    """A folder that NeMo marks as unfinished, or that lacks what Megatron writes last, is incomplete."""
    folder = nemo(tmp_path / "step=8", extra="optimizer._extra_state")
    assert holds(open_checkpoint(folder), W)
    (tmp_path / "step=8-unfinished").touch()
    assert "is marked as unfinished" in str(refusal(folder))
    (tmp_path / "step=8-unfinished").unlink()
    (folder / "weights" / "common.pt").touch()
    assert "has no metadata.json" in str(refusal(folder))
    (folder / "weights" / "metadata.json").write_text("{}")
    assert holds(open_checkpoint(folder), W)


def test_composers_averages_are_seen(tmp_path: Path) -> None:
    """With its EMA on, Composer's model holds averages, and says so; with its EMA off it does not."""
    state = {"ema_weights_active": True, "ema_model": {"named_parameters_dict": OTHER}}
    folder = save_folder(tmp_path / "ep1-ba8", composer([("Other", {}), ("EMA", state)]))
    assert open_checkpoint(folder).averaged == "Composer's EMA was on: 'state.model' holds averages"
    off = save_folder(tmp_path / "ep1-ba9", composer([("EMA", {**state, "ema_weights_active": False})]))
    assert open_checkpoint(off).averaged is None


def test_averages_that_are_not_there(tmp_path: Path) -> None:
    """Asking for averages where there are none is an error of the run."""
    error = refusal(save_folder(tmp_path / "step-8", TITAN), weights="ema")
    assert (type(error), error.hint) == (NoSuchWeights, "leave out weights='ema'")


def test_no_model_is_an_error(tmp_path: Path) -> None:
    """A folder with an optimizer alone holds no weights."""
    assert type(refusal(save_folder(tmp_path / "step-8", {"optimizer": OPTIMIZER}))) is NoWeights


def test_a_dict_stored_as_one_item_has_the_clock(tmp_path: Path) -> None:
    """Older versions of torch store a dict without tensors as one item: its step is found in there."""
    pieces = Pieces(tmp_path)
    pieces.add("w", torch.ones(2))
    pieces.add_item("train_state", {"step": 8, "ntokens_seen": 0, "loss": 0.5})
    checkpoint = open_checkpoint(pieces.write())
    assert (clocks(checkpoint), checkpoint.trainer) == ({"ba": 8}, "torchtitan")


@pytest.mark.parametrize("value", [-1, True, "8", 8.0, None, torch.ones(2), 1 << 70])
def test_only_a_whole_number_is_a_clock(value: Any, tmp_path: Path) -> None:
    """Only a whole number that is not negative is a clock."""
    assert clocks(open_checkpoint(save_folder(tmp_path / "a", {"model": W, "step": value}))) == {}


def test_a_folder_without_metadata_is_incomplete(tmp_path: Path) -> None:
    """torch writes `.metadata` last: without it the folder is still being written."""
    folder = save_folder(tmp_path / "step-8", {"model": W})
    (folder / ".metadata").unlink()
    error = refusal(folder)
    assert (type(error), str(error)) == (IncompleteCheckpoint, f"{folder}: has no .metadata, which is written last")


def test_a_missing_or_short_shard_is_incomplete(tmp_path: Path) -> None:
    """A file of the folder that is gone, or ends before a record does, is named."""
    folder = save_folder(tmp_path / "step-8", {"model": W})
    (shard,) = folder.glob("*.distcp")
    os.truncate(shard, shard.stat().st_size - 1)
    error = refusal(folder)
    assert type(error) is IncompleteCheckpoint
    assert f"{shard}: cut short: '" in str(error)
    shard.unlink()
    error = refusal(folder)
    assert (type(error), str(error)) == (IncompleteCheckpoint, f"{folder}: shard '{shard.name}' is missing")


def test_a_folder_newer_than_the_latest_is_incomplete(tmp_path: Path) -> None:
    """Megatron names the newest whole checkpoint in a file beside it: a newer one is not done."""
    for step in (7, 8):
        save_folder(tmp_path / f"iter_{step:07}", {"model": W})
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert holds(open_checkpoint(tmp_path / "iter_0000007"), W)
    assert type(refusal(tmp_path / "iter_0000008")) is Unfinished
