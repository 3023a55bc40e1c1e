"""The adapters of a run, each merged into the base model that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, option
from ema_cli.formats import open_checkpoint
from ema_cli.formats.adapters.merged import merge
from ema_cli.runs.entering import files_of
from ema_cli.runs.tensor_rules import is_adapter
from ema_cli.storage.named_paths import check_exists


def merge_all(checkpoints: Sequence[Checkpoint], path: Path, began: Checkpoint | None) -> tuple[Checkpoint, ...]:
    """Return the adapters of a run as checkpoints of the whole model; see `formats.adapters.merged`.

    Args:
        checkpoints: those of the run, each an adapter, but for the one that it began with.
        path: the base model, a folder or a file.
        began: the first of the checkpoints, where the law needs what the training began with: an adapter, or the base
            model itself, as a new adapter changes nothing in it.

    Raises:
        UsageError: where nothing is at `path`.
        RunError: where it is no base model of the adapters, or the training began with another one.
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
    if began is not None and not is_adapter(began.tensors.specs) and files_of(began) != files_of(base):
        raise RunError(
            f"is no adapter, and another model than {path}, into which the adapters are merged and with which their "
            "training began",
            subject=began.path,
            hint=f"name that one, {option('base', str(path))}, or an adapter of the run",
        )
    return tuple(merge(checkpoints, base))
