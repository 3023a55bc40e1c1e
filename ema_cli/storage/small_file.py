"""Small files that are read whole: those that a user names, and those beside an average."""

from __future__ import annotations

from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.storage.location import location


def read_small_file(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file. A device or a FIFO, which may never end, is not opened.

    Raises:
        CheckpointError: where there is no regular file, where it is larger than `most_bytes`, or cannot be read.
    """
    file = location(path).open()
    if file.size > most_bytes:
        raise CheckpointError(
            f"{file.size} bytes are too many for this file; at most {most_bytes} are read", subject=path
        )
    return file.read(0, file.size)
