"""Two readings of one checkpoint, to be compared: by itself, and by what another one was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ema_cli.errors import EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.formats.reading import read_all


def outcome(path: Path, options: ReadOptions) -> Any:
    """Return all that a reader finds in a checkpoint, in order, or its error as a user sees it."""
    try:
        checkpoint = open_checkpoint(path, options)
        tensors = checkpoint.tensors
        names = list(tensors.specs)
        places = [(tensors.place(name), tensors.offset(name, 0), tensors.shard(name)) for name in names]
        files = [file.path for file in checkpoint.files]
        facts = (checkpoint.format, checkpoint.trainer, checkpoint.progress, checkpoint.averages, checkpoint.notes)
        return names, dict(tensors.specs), places, read_all(tensors), files, facts, checkpoint.resumable
    except EmaError as error:
        return type(error), str(error), error.hint


def outcomes(first: Path, second: Path) -> tuple[Any, Any]:
    """Return what is found in the second by itself, and after the first was read twice with the same options."""
    options = ReadOptions()
    outcome(first, options)
    outcome(first, options)
    return outcome(second, ReadOptions()), outcome(second, options)
