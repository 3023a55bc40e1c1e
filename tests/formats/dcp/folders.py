"""DCP folders with the keys of several trainers, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.formats.reading import read_all, stored_bytes

W = {"layers.0.weight": torch.arange(6.0).reshape(2, 3), "norm.count": torch.tensor(3)}
OTHER = {name: tensor + 1 for name, tensor in W.items()}
OPTIMIZER = {"state": {name: {"exp_avg": tensor + 5} for name, tensor in W.items()}, "param_groups": [{"lr": 0.1}]}
FLAT_OPTIMIZER = {f"state.{name}.exp_avg": tensor + 5 for name, tensor in W.items()}


def timestamp(batch: int) -> dict[str, Any]:
    """Return Composer's clocks."""
    return {"Timestamp": {"epoch": 1, "batch": batch, "sample": 4 * batch, "token": 0, "batch_in_epoch": 3}}


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors under longer names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def clocks(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the clocks by the short name of their unit."""
    return {unit.value: float(clock.value) for unit, clock in checkpoint.progress.clocks.items()}


def holds(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> bool:
    """Return whether the checkpoint's weights are exactly these tensors."""
    return read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in tensors.items()}


def refusal(path: Path, **options: Any) -> EmaError:
    """Return the error that opening the folder gives; it names the folder."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path, ReadOptions(**options))
    assert str(caught.value).startswith(str(path))
    return caught.value


TITAN = {
    **W,
    "optimizer": FLAT_OPTIMIZER,
    "lr_scheduler": {"last_epoch": 8, "base_lrs": [0.1]},
    "dataloader": {"dp_rank_0": b"bytes", "world_size": 1},
    "train_state": {"step": torch.tensor(8, dtype=torch.int32), "ntokens_seen": torch.tensor(512)},
}


def composer(algorithms: Any) -> dict[str, Any]:
    """Return what Composer saves with algorithms on."""
    return {"state": {"model": W, "timestamp": timestamp(8), "algorithms": algorithms}}
