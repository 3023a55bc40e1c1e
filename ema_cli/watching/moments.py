"""The state of a watch on the disk: moments, each a folder with the averages as `EMA.store` writes them.

In the folder lie `first.safetensors`, the first copy, and for the newest moment, and each that is kept, a folder with
the name of its clock: an average in float32 for each law, in `rest` what was rounded off it, `watch.json` with what was
folded, and in `model` the side files of the newest checkpoint. A moment is there as a whole or not at all; the newest
is where a watch goes on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, EmaError, OutputError, UsageError, option
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors.file import open_checkpoint
from ema_cli.law.time import Time
from ema_cli.storage.local_file import close_idle_files
from ema_cli.storage.location import location
from ema_cli.storage.marked_folders import MarkedFolders
from ema_cli.storage.names import StorePath
from ema_cli.watching.asked import WHOLE
from ema_cli.watching.form import Form, form_of
from ema_cli.watching.journal import JOURNAL, Journal, way_back
from ema_cli.watching.past import Past

SIDE_FILES, REST = "model", "rest"
_GONE = "given-up"


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment: the averages as they were at a clock."""

    folder: Path
    journal: Journal

    @property
    def clock(self) -> Time:
        """Return its clock."""
        return Time.parse(self.folder.name)

    @property
    def newest(self) -> Past:
        """Return the checkpoint that was folded last."""
        return self.journal.folded[-1]

    def average(self, name: str) -> Checkpoint:
        """Open the average of a law.

        Raises:
            CheckpointError: where it cannot be read.
        """
        return self._open(f"{name}.safetensors")

    def summed(self, name: str, names: frozenset[str]) -> Checkpoint:
        """Open the average of a law with what was rounded off it, as float64; `names` are the tensors of which it was.

        Raises:
            CheckpointError: where one of them cannot be read.
        """
        from ema_cli.watching.rest import opened  # which loads numpy

        is_first = len(self.journal.folded) == 1
        rest = None if is_first else self._open(f"{REST}/{name}.safetensors")
        return opened(self.average(name), rest, names)

    def form(self, average: Checkpoint) -> Form:
        """Return what the newest checkpoint said of the output, by an average of the moment.

        Raises:
            CheckpointError: where the journal does not fit the average.
        """
        try:
            return form_of(self.journal.newest, average, self.folder / SIDE_FILES)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"is damaged: {error}", subject=self.folder / JOURNAL) from error

    def _open(self, name: str) -> Checkpoint:
        try:
            return open_checkpoint(self.folder / name, ReadOptions(keep_prefix=True))
        except CheckpointError as error:
            raise CheckpointError(error.fact, subject=error.subject, hint=way_back(self.folder)) from error


def alone(folder: Path) -> AbstractContextManager[list[str]]:
    """Make the folder of a watch, unless it is there, and keep a second watch out of it; see `MarkedFolders.held`."""
    return kept_in(folder).held("another watch writes these averages", "end that one first")


def kept_in(folder: Path) -> MarkedFolders:
    """Return the moments in the folder of a watch, as folders."""
    if isinstance(folder, StorePath):
        from ema_cli.storage.marked_objects import MarkedObjects  # which only those need who write into a store

        return MarkedObjects(folder, JOURNAL)
    return MarkedFolders(folder, JOURNAL)


def moments_in(folder: Path) -> list[Path]:
    """Return the folders of the moments, oldest first."""
    found: list[tuple[Fraction, Path]] = []
    for path in kept_in(folder).paths():
        with suppress(UsageError, EmaError):
            clock = Time.parse(path.name)
            if str(clock) == path.name:
                found.append((Fraction(clock.value), path))
    return [path for _, path in sorted(found)]


def newest_moment(folder: Path, what: Mapping[str, Any]) -> Moment | None:
    """Return the moment at which a watch goes on, None where there is none yet.

    Raises:
        OutputError: where the folder is of another watch.
        CheckpointError: where its record cannot be read.
    """
    found = moments_in(folder)
    if not found:
        return None
    journal = Journal.read(found[-1] / JOURNAL)
    different = [key for key in {**what, **journal.what} if journal.what.get(key) != what.get(key)]
    if different:
        shown = "; ".join(_shown(key, journal.what.get(key)) for key in different)
        raise OutputError(
            f"is of another watch ({shown})",
            subject=folder,
            hint=f"say the same as then, or choose another {option('o')}; other half-lives can be made of what is kept "
            f"there, with {option('from', 'stored')}",
        )
    return Moment(found[-1], journal)


def _shown(key: str, value: Any) -> str:
    if key == WHOLE:
        return f"with {'the' if value else 'no'} checkpoint kept as a whole, as outputs that a trainer loads need it"
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return f"{key}: {', '.join(str(one.get('law')) for one in value)}"
    return f"{key}: {json.dumps(value)}"


def go_back(folder: Path, clock: Time) -> list[Path]:
    """Give up all moments after a clock; return where they are now.

    Raises:
        OutputError: where no moment of that clock is kept.
    """
    found = moments_in(folder)
    wanted = [path for path in found if path.name == str(clock)]
    if not wanted:
        kept = ", ".join(path.name for path in found) or "none"
        before = [path.name for path in found if Fraction(Time.parse(path.name).value) < Fraction(clock.value)]
        again = f"the last before it: {option('restart_from', before[-1])}; " if before else ""
        raise OutputError(
            f"no moment is kept at {clock}; kept: {kept}",
            subject=folder,
            hint=f"{again}{option('store_every')} keeps moments to go back to",
        )
    given_up = []
    for path in reversed(found[found.index(wanted[0]) + 1 :]):  # so that the newest is right, whenever it is ended
        name = _free_name(path)
        kept_in(folder).move(path, name)
        given_up.append(name)
    return given_up


def _free_name(path: Path) -> Path:
    numbers = (f".{number}" if number else "" for number in itertools.count())
    names = (path.with_name(f"{path.name}.{_GONE}{end}") for end in numbers)
    return next(name for name in names if not location(name).info().exists)


def drop_older(folder: Path, newest: Path) -> None:
    """Remove the moments before the newest that are not kept: each is gone as a whole, or there."""
    for path in moments_in(folder):
        if path != newest and not Journal.read(path / JOURNAL).kept:
            kept_in(folder).remove(path)
            close_idle_files()  # the room of what is removed is free only then
