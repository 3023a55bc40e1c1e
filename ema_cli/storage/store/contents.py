"""Objects that are put, or read, as a whole: files of this machine, and short texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.storage.names import StorePath
from ema_cli.storage.store.clients import client_of, obstore, output_errors_in_store, store_errors
from ema_cli.storage.store.requests import answered, content_of, put
from ema_cli.storage.store.uploads import part_bytes, parts_at_once


def put_file(path: StorePath, file: Path) -> None:
    """Put a local file at an address.

    Raises:
        OutputError: where the store refuses.
    """
    size = file.stat().st_size
    part, at_once = part_bytes(size), parts_at_once(size)
    with output_errors_in_store(path):
        content = file.read_bytes() if size <= part else _pieces(file, part)
        answered(lambda: obstore().put(client_of(path), path.key, content, chunk_size=part, max_concurrency=at_once))


def put_text(path: StorePath, text: str) -> None:
    """Put a small object at an address.

    Raises:
        OutputError: where the store refuses.
    """
    with output_errors_in_store(path):
        put(path, text.encode())


def read_text(path: StorePath) -> str | None:
    """Return the content of a small object as it is now, None where it cannot be read."""
    try:
        with store_errors(path, "cannot be read"):
            return content_of(path)[1].decode()
    except (CheckpointError, FileNotFoundError, UnicodeDecodeError):
        return None


def _pieces(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(size):
            yield piece
