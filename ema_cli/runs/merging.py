"""The adapters of a run, each merged into the base model that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, option
from ema_cli.formats import open_checkpoint
from ema_cli.formats.adapters.merged import merge
from ema_cli.runs.tensor_rules import is_adapter
from ema_cli.storage.location import check_exists


def merge_all(adapters: Sequence[Checkpoint], path: Path) -> tuple[Checkpoint, ...]:
    """Return the adapters as checkpoints of the whole model; see `formats.adapters.merged`.

    Args:
        adapters: the checkpoints of a run.
        path: the base model, a folder or a file.

    Raises:
        UsageError: where nothing is at `path`.
        RunError: where it is no base model of the adapters.
        CheckpointError: where it, or an adapter, cannot be read.
    """
    check_exists(path)
    base = open_checkpoint(path)
    if is_adapter(base.tensors.specs):
        raise RunError(
            "is an adapter, and no model that one is merged into",
            subject=path,
            hint=f"name the model that the run began from: {option('merge_into', 'BASE')}",
        )
    return tuple(merge(adapters, base))
