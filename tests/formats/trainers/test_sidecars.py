"""Clocks in files beside the weights: each row of the table, with files as that trainer writes them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from ema_cli.errors import IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.formats.trainers.sidecars import SIDECARS
from ema_cli.runs.run import open_run
from tests.conftest import Cli
from tests.formats.trainers.state import plain_clocks

DATA = Path(__file__).parents[2] / "data"
WEIGHTS = {"w": torch.ones(2)}


def saved(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    return path


def speechbrain(folder: Path, *, ended: bool = True) -> Path:
    checkpoint = saved(folder / "CKPT+2026-11-29+14-04-17+00" / "model.ckpt", WEIGHTS)
    saved(checkpoint.with_name("brain.ckpt"), "avg_train_loss: 0.239\noptimizer_step: 10\nstep: 5\n")
    saved(checkpoint.with_name("counter.ckpt"), "2")
    meta = f"# yamllint disable\nend-of-epoch: {str(ended).lower()}\nloss: 0.239\nunixtime: 1795961057.1171424\n"
    saved(checkpoint.with_name("CKPT.yaml"), meta)
    return checkpoint


def lerobot(folder: Path) -> Path:
    saved(folder / "000010" / "training_state" / "training_step.json", '{\n    "step": 10\n}')
    return saved(folder / "000010" / "pretrained_model" / "model.safetensors", WEIGHTS).parent


def nanochat(folder: Path) -> Path:
    saved(folder / "meta_000100.json", json.dumps({"step": 100, "val_bpb": 0.9, "model_config": {"n_layer": 20}}))
    saved(folder / "optim_000100_rank0.pt", {"state": {}})
    return saved(folder / "model_000100.pt", WEIGHTS)


def openpi(folder: Path) -> Path:
    saved(folder / "5000" / "metadata.pt", {"global_step": 5000, "config": {"batch_size": 32}, "timestamp": 1.0})
    saved(folder / "5000" / "optimizer.pt", {"state": {}})
    return saved(folder / "5000" / "model.safetensors", WEIGHTS).parent


def megatron(folder: Path) -> Path:
    checkpoint = folder / "iter_0001000"
    dcp.save({"decoder.weight": torch.ones(2)}, checkpoint_id=checkpoint, no_dist=True)
    arguments = argparse.Namespace(consumed_train_samples=64000, tensor_model_parallel_size=1)
    saved(checkpoint / "common.pt", {"iteration": 1000, "args": arguments, "checkpoint_version": 3.0})
    (checkpoint / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return checkpoint


ROWS: dict[str, tuple[Callable[[Path], Path], dict[str, float]]] = {
    "SpeechBrain": (speechbrain, {"ba": 10, "ep": 2}),
    "LeRobot": (lerobot, {"ba": 10}),
    "nanochat": (nanochat, {"ba": 100}),
    "openpi": (openpi, {"ba": 5000}),
    "Megatron": (megatron, {"ba": 1000, "sp": 64000}),
}


def test_every_row_is_tested() -> None:
    """A row without a test would be a guess."""
    assert set(ROWS) == {row.trainer for row in SIDECARS}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("trainer", ROWS)
def test_a_file_beside_the_weights_records_clocks(trainer: str, tmp_path: Path) -> None:
    """They are the checkpoint's, and the file is watched as the weights are."""
    write, clocks = ROWS[trainer]
    checkpoint = open_checkpoint(write(tmp_path))
    assert (checkpoint.trainer, plain_clocks(checkpoint.progress)) == (trainer, clocks)
    assert {clock.source for clock in checkpoint.progress.clocks.values()} == {"sidecar"}
    assert len(checkpoint.files) > 1


def test_an_epoch_of_speechbrain_s_that_runs_is_not_completed(tmp_path: Path) -> None:
    """Its counter is of the epoch that runs."""
    assert plain_clocks(open_checkpoint(speechbrain(tmp_path, ended=False)).progress) == {"ba": 10, "ep": 1}


def test_a_checkpoint_without_its_sidecar_has_no_clock(tmp_path: Path) -> None:
    """As one that was uploaded alone."""
    checkpoint = lerobot(tmp_path)
    (tmp_path / "000010" / "training_state" / "training_step.json").unlink()
    assert open_checkpoint(checkpoint).progress.clocks == {}


def test_a_sidecar_that_is_half_written_is_said(tmp_path: Path) -> None:
    """Its trainer is still writing."""
    checkpoint = lerobot(tmp_path)
    (tmp_path / "000010" / "training_state" / "training_step.json").write_text('{"step": ')
    with pytest.raises(IncompleteCheckpoint, match=r"training_step\.json"):
        open_checkpoint(checkpoint)


def average_of(tensors: list[dict[str, torch.Tensor]], weights: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """Return the floating tensors averaged in float64, and what else the newest has."""
    return {
        name: sum(w * each[name].double() for w, each in zip(weights, tensors, strict=True)).to(newest.dtype)
        if newest.is_floating_point()
        else newest
        for name, newest in tensors[-1].items()
    }


def test_a_run_of_lerobot_s_is_averaged_by_its_steps(cli: Cli, tmp_path: Path) -> None:
    """Files that LeRobot wrote, against an average in float64 of what safetensors loads."""
    done = cli("average", DATA / "lerobot-0.4.4", "--half-life", "10ba", "-o", "out.safetensors")
    assert done.code == 0, done
    paths = sorted((DATA / "lerobot-0.4.4").glob("*/pretrained_model/model.safetensors"))
    expected = average_of([load_file(path) for path in paths], (0.25, 0.25, 0.5))
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=1e-6)


def test_ray_s_folders_hold_what_the_trainer_in_them_saved(tmp_path: Path) -> None:
    """checkpoint_NNNNNN counts reports; the clocks are those of the Trainer or of Lightning inside."""
    for report, step in enumerate((100, 200)):
        inner = tmp_path / "hf" / f"checkpoint_{report:06}" / "checkpoint"
        saved(inner / "model.safetensors", WEIGHTS)
        saved(inner / "trainer_state.json", json.dumps({"global_step": step, "epoch": step / 100}))
        state = {"pytorch-lightning_version": "2.6.6", "epoch": report, "global_step": step, "state_dict": WEIGHTS}
        saved(tmp_path / "pl" / f"checkpoint_{report:06}" / "checkpoint.ckpt", state)
    for name in ("hf", "pl"):
        run = open_run(tmp_path / name)
        assert [plain_clocks(checkpoint.progress) for checkpoint in run.checkpoints] == [
            {"ba": 100, "ep": 1},
            {"ba": 200, "ep": 2},
        ]


def test_fastai_s_numbers_are_epochs_from_0(tmp_path: Path) -> None:
    """model_0.pth is one completed epoch; nothing inside says so, and the user does."""
    for epoch in range(3):
        saved(tmp_path / f"model_{epoch}.pth", {"model": WEIGHTS, "opt": {"state": [], "hypers": []}})
    run = open_run(tmp_path, name_clock="ep")
    assert [plain_clocks(checkpoint.progress) for checkpoint in run.checkpoints] == [{"ep": 1}, {"ep": 2}, {"ep": 3}]


def test_monai_s_names_and_net(tmp_path: Path) -> None:
    """The model is under `net`; names say iterations, the last one too, and a metric is none."""
    for name, value in (("net_iteration=10", 1.0), ("net_iteration=20", 2.0), ("net_final_iteration=30", 3.0)):
        saved(tmp_path / f"{name}.pt", {"net": {"w": torch.full((2,), value)}, "opt": {"state": {}}})
    run = open_run(tmp_path)
    assert [plain_clocks(checkpoint.progress) for checkpoint in run.checkpoints] == [{"ba": 10}, {"ba": 20}, {"ba": 30}]


def test_skorch_s_best_and_last_are_not_two_checkpoints_of_a_run(cli: Cli, tmp_path: Path) -> None:
    """params_N.pt are; optimizer, criterion and history are no weights."""
    for epoch in (1, 2):
        saved(tmp_path / "run" / f"params_{epoch}.pt", {"w": torch.full((2,), float(epoch))})
    saved(tmp_path / "run" / "train_end_params.pt", {"w": torch.full((2,), 2.0)})
    for name in ("optimizer", "train_end_optimizer", "criterion", "train_end_criterion"):
        saved(tmp_path / "run" / f"{name}.pt", {"state": {}})
    done = cli("average", "run", "--half-life", "1ep", "--spacing", "1ep", "-o", "out.safetensors")
    assert done.code == 0, done
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [1.5, 1.5]
    assert [passed.name for passed in open_run(tmp_path / "run").passed_over] == []


def test_mlx_lm_s_adapters_have_their_iteration_in_the_name(tmp_path: Path) -> None:
    """0000100_adapters.safetensors; the plain name is a copy of the last."""
    for name in ("0000100_adapters", "0000200_adapters"):
        saved(tmp_path / f"{name}.safetensors", {"layers.0.lora_a": torch.ones(2, 2)})
    run = open_run(tmp_path)
    assert [plain_clocks(checkpoint.progress) for checkpoint in run.checkpoints] == [{"ba": 100}, {"ba": 200}]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_megatron_s_common_state_among_the_shards(tmp_path: Path) -> None:
    """Megatron-Core 0.19 has no common.pt: its content is one object in the shards."""
    arguments = argparse.Namespace(consumed_train_samples=64000)
    state = {"decoder.weight": torch.ones(2), "common_state/shard_0_1": {"iteration": 1000, "args": arguments}}
    planner = DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(state, checkpoint_id=tmp_path / "a", planner=planner, no_dist=True)
    checkpoint = open_checkpoint(tmp_path / "a")
    assert (checkpoint.trainer, plain_clocks(checkpoint.progress)) == ("Megatron", {"ba": 1000, "sp": 64000})
    assert list(checkpoint.tensors.specs) == ["decoder.weight"]
