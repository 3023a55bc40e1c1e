"""State dicts as trainers nest them, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.checkpoint import Checkpoint, Progress
from ema_cli.errors import EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import Choice, ReadOptions
from tests.formats.reading import read_all, stored_bytes

RAW = {"w": torch.full((2,), 1.0), "n": torch.tensor(1)}
EMA = {"w": torch.full((2,), 2.0), "n": torch.tensor(2)}
OTHER = {"w": torch.full((2,), 3.0)}


def opened(folder: Path, saved: object, *, key: str | None = None, weights: Choice = None) -> Checkpoint:
    """Save something with torch and open it."""
    torch.save(saved, folder / "a.pt")
    return open_checkpoint(folder / "a.pt", ReadOptions(key, weights))


def refusal(folder: Path, saved: object, **options: Any) -> EmaError:
    """Return the error that opening it gives, which names the file."""
    with pytest.raises(EmaError) as caught:
        opened(folder, saved, **options)
    assert str(caught.value).startswith(f"{folder / 'a.pt'}: ")
    return caught.value


def holds(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> bool:
    """Return whether the checkpoint's weights are exactly these tensors."""
    return read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in tensors.items()}


def plain_clocks(progress: Progress) -> dict[str, float]:
    """Return the clocks by the short name of their unit."""
    return {unit.value: float(clock.value) for unit, clock in progress.clocks.items()}


def lightning(**changes: Any) -> dict[str, Any]:
    """Return what Lightning pickles."""
    progress = {"batch_progress": {"is_last_batch": changes.pop("last", True)}}
    loops = {"fit_loop": {f"epoch_loop.{name}": value for name, value in progress.items()}}
    base = {"pytorch-lightning_version": "2.6", "epoch": 2, "global_step": 30, "state_dict": RAW, "loops": loops}
    return base | {"hyper_parameters": {"lr": 0.1}, "optimizer_states": []} | changes
