"""What names, or a few bytes, tell of a path that a search finds: a clock, the name of another file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.formats.trainers.folders import TRAINER_STATE
from ema_cli.formats.trainers.names import name_clocks
from ema_cli.storage.info import Entry
from ema_cli.storage.location import location, names_in

_POINTER_BYTES = 4096
_MAX_NAME_BYTES = 255


def has_clock_in(entry: Entry) -> bool:
    """Return whether a name tells the training time."""
    return bool(name_clocks(entry.name).clocks)


def has_clock(path: Path) -> bool:
    """Return whether the name of a path, or a trainer's file in it, tells the training time."""
    return bool(name_clocks(path.name).clocks) or location(path / TRAINER_STATE).info().is_file


def pointer(path: Path) -> str | None:
    """Return the sibling that a small text file names: so Composer replaces links on file systems without them."""
    try:
        if not 0 < location(path).info().size <= _POINTER_BYTES:
            return None
        file = location(path).open()
        text = file.read(0, file.size).strip()
    except CheckpointError:
        return None  # opening it as a checkpoint gives the reason
    if not text or b"\0" in text or b"/" in text:
        return None
    name = os.fsdecode(text)
    if "\n" in name or len(text) > _MAX_NAME_BYTES or name == path.name:
        return None
    return name if location(path.parent / name).info().is_file else None


def names_below(folder: Path) -> Iterator[str]:
    """Yield the names in a folder, and in those in it."""
    for name in names_in(folder):
        yield name
        yield from names_in(folder / name)
