"""Small files that are read or written whole: what a user names, what lies beside an average, what runs tell others."""

from __future__ import annotations

import os
from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.storage.location import location
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import output_errors


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


def write_small_file(path: Path, text: str) -> None:
    """Put a file in the place of what is there, as a whole: others may read it at any time. The disk may have it later.

    Raises:
        OutputError: where that is refused.
    """
    if isinstance(path, StorePath):
        from ema_cli.storage.store.contents import put_text  # which only those need who write to a store

        put_text(path, text)
        return
    fresh = path.with_name(f"{path.name}-{os.urandom(4).hex()}")
    with output_errors(path):
        fresh.write_text(text)
        fresh.replace(path)
