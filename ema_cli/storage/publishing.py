"""Publish a single file: written in private, and in place as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ema_cli.storage.location import location
from ema_cli.storage.output_stream import OutputStream, new_file


@contextmanager
def stage_file(path: Path, *, force: bool) -> Iterator[OutputStream]:
    """Yield the file that is published at `path` when the block ends well; after an error nothing is left of it.

    Raises:
        OutputError: where it cannot be written, or is there already and `force` does not allow to replace it.
    """
    with location(path).staging() as staging:
        with new_file(staging.folder / path.name, summed=False) as stream:
            yield stream
        staging.publish_file(path.name, force=force)
