"""A checkpoint that is one file of torch.save, in either of its containers and under any suffix."""

from __future__ import annotations

import stat
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError, IncompleteCheckpoint, UsageError
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.places import find_weights
from ema_cli.formats.torch_legacy import open_legacy
from ema_cli.formats.torch_tensors import TorchFile
from ema_cli.formats.torch_zip import SIGNATURE, open_zip
from ema_cli.input_file import ByteSource, InputFile

_PICKLE = b"\x80"  # the instruction with which a pickle of protocol 2 or newer begins


def matches(path: Path) -> bool:
    """Return whether the file begins as a zip archive or as a pickle."""
    return first_bytes(path, 4).startswith((SIGNATURE, _PICKLE))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Unpickle the description, find the weights in it, and check that their bytes are there."""
    file = InputFile(path)
    opened = open_torch(file)
    try:
        found = find_weights(opened.root, options, opened.scalar)
    except (UsageError, IncompleteCheckpoint):
        raise
    except EmaError as error:
        message = str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}"
        raise type(error)(message, hint=error.hint) from error
    return Checkpoint(
        name=path.name,
        path=path,
        weights=opened.weights(found.tensors),
        files=(file,),
        format="torch zip" if is_zip(file) else "torch legacy",
        trainer=found.trainer,
        progress=found.progress,
        averaged=found.averaged,
        notes=tuple(found.notes),
    )


def open_torch(source: ByteSource) -> TorchFile:
    """Read what `torch.save` wrote into a file, or into a record of a shard."""
    return open_zip(source) if is_zip(source) else open_legacy(source)


def is_zip(source: ByteSource) -> bool:
    """Return whether the bytes begin as a zip archive."""
    return source.size >= len(SIGNATURE) and source.read(0, len(SIGNATURE)) == SIGNATURE


def first_bytes(path: Path, count: int) -> bytes:
    """Return the beginning of a regular file, nothing for anything else (a FIFO would make us wait)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
