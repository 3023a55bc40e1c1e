"""The small text files in which a trainer names its newest checkpoint once that is whole."""

from __future__ import annotations

import re
from pathlib import Path

from ema_cli.errors import CheckpointError, Unfinished
from ema_cli.formats.trainers.folders import LATEST
from ema_cli.storage.location import location

_MAX_BYTES = 4096
_NUMBER = re.compile(r"(\d{1,18})$")


def check_latest(path: Path) -> None:
    """Raise an `Unfinished` error if the folder at `path` is newer than the one that is known to be whole.

    Folders are compared by the numbers at the end of their names.
    """
    mine = _NUMBER.search(path.name)
    if mine is None:
        return
    for name in LATEST:
        text = _read(path.parent / name)
        newest = _NUMBER.search(text) if text else None
        if text and newest and int(newest[1]) < int(mine[1]):
            raise Unfinished(
                f"is newer than '{text[:60]}', which '{name}' beside it names as the newest that is whole", subject=path
            )


def _read(path: Path) -> str | None:
    if not location(path).info().is_file:
        return None
    try:
        file = location(path).open()
    except CheckpointError:
        return None  # it vanished: then it marks nothing
    return file.read(0, file.size).decode("utf-8", "replace").strip() if file.size <= _MAX_BYTES else None
