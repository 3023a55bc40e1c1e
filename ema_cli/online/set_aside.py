"""What another training, or a branch that was given up, has stored in a folder: renamed, not removed.

What `EMA.store` did not make is never touched.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

from ema_cli.errors import CheckpointError, OutputError, UsageError
from ema_cli.law.branches import Lineage, belongs_to
from ema_cli.law.time import Time
from ema_cli.runs.stored_file import FIRST, StoredAverage, open_stored_file

_FIRST_FILE = f"{FIRST}.safetensors"


def set_aside(folder: Path, written: list[Path], lineage: Lineage, *, everywhere: bool) -> None:
    """Rename what is in the way of this lineage's averages, and what may be taken for them, to `NAME.given-up`.

    Args:
        folder: where averages are stored.
        written: the folder in it, and maybe the file of the first copy, that averages are now written to.
        lineage: this start or resume, and those that it goes back to.
        everywhere: look at all that is stored there, not only at what is in the way.

    Raises:
        OutputError: where a file or folder that `EMA.store` did not make is in the way; nothing is renamed then.
    """
    for path in written:
        if path.exists() and not _is_empty(path) and not _stored_at(path):
            raise OutputError(
                "is there already, and EMA.store did not make it", subject=path, hint="store in a folder of its own"
            )
    for path in sorted(folder.iterdir()) if everywhere else written:
        stored = _stored_at(path)
        if stored and not any(belongs_to(lineage, average.branch, average.clock) for average in stored):
            path.rename(_free_name(path))


def _stored_at(path: Path) -> list[StoredAverage]:
    """Return the stored averages in a folder that has the name of their clock, or the first copy in a file."""
    if path.is_dir():
        try:
            Time.parse(path.name)
        except UsageError:
            return []
        found = [_opened(file) for file in sorted(path.glob("*.safetensors"))]
        return [average for average in found if average is not None and str(average.clock) == path.name]
    first = _opened(path) if path.name == _FIRST_FILE else None
    return [] if first is None else [first]


def _opened(path: Path) -> StoredAverage | None:
    with suppress(CheckpointError):
        return open_stored_file(path, path.parent)
    return None


def _is_empty(path: Path) -> bool:
    """Return whether a folder holds nothing but what an interrupted writer may have left: hidden files."""
    return path.is_dir() and all(child.name.startswith(".") for child in path.iterdir())


def _free_name(path: Path) -> Path:
    numbers = (f".{number}" if number else "" for number in itertools.count())
    names = (path.with_name(f"{path.name}.given-up{number}") for number in numbers)
    return next(name for name in names if not name.exists())
