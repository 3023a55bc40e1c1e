"""A checkpoint that is one file of torch.save, under any suffix."""

from __future__ import annotations

import stat
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError, IncompleteCheckpoint, UsageError
from ema_cli.formats.layouts import find_weights
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.torch_zip import TorchArchive

_ZIP = b"PK\x03\x04"


def matches(path: Path) -> bool:
    """Return whether the file begins as a zip archive."""
    return first_bytes(path, 4) == _ZIP


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Unpickle the description, find the weights in it, and check that their bytes are there."""
    archive = TorchArchive(path)
    try:
        found = find_weights(archive.root, options.key, options.weights, archive.scalar)
    except (UsageError, IncompleteCheckpoint):
        raise
    except EmaError as error:
        message = str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}"
        raise type(error)(message, hint=error.hint) from error
    return Checkpoint(
        name=path.name,
        path=path,
        weights=archive.weights(found.tensors),
        files=(archive.file,),
        format="torch zip",
        trainer=found.trainer,
        progress=found.progress,
        averaged=found.averaged,
        notes=tuple(found.notes),
    )


def first_bytes(path: Path, count: int) -> bytes:
    """Return the beginning of a regular file, nothing for anything else (a FIFO would make us wait)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
