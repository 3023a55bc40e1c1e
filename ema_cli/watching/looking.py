"""Look at the folder of a training: by stat alone until something has changed, then at the headers of what is there."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoWeights, option
from ema_cli.formats.json_text import read_json
from ema_cli.formats.trainers.folders import TRAINER_STATE
from ema_cli.formats.trainers.names import name_clocks
from ema_cli.law.time import Unit
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.run import Run, read_run
from ema_cli.storage.info import Info
from ema_cli.storage.location import location, look_anew, walk

_LAST_FILES = (TRAINER_STATE, ".metadata")  # what transformers and torch.distributed.checkpoint write last
_MOST_STATE_BYTES = 128 << 20
_WAIT = f"without {option('once', True)} it is waited for"
_MOST_DIGITS = 18  # of a number in a name

Table = Mapping[Path, Info]


@dataclass(frozen=True, slots=True)
class Pending:
    """A checkpoint that is not complete.

    Attributes:
        name: as the run has it.
        path: where it lies.
        clock: by its name; None where that says none.
    """

    name: str
    path: Path
    clock: Fraction | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What is in the folder.

    Attributes:
        run: the run; None where no checkpoint is complete.
        pending: what is not complete.
        problem: why there is no run.
        may_come: whether the problem is only that nothing is complete yet.
    """

    run: Run | None
    pending: tuple[Pending, ...]
    problem: EmaError | None = None
    may_come: bool = False


@dataclass(slots=True)
class Lookout:
    """Looks at a folder again and again, and knows since when each file is as it is.

    Attributes:
        path: the folder, or a file.
        options: how the run is opened.
        ours: folders in it that are the watch's own.
        whole: whether all at the path of a checkpoint counts as its own, not only what its tensors are read from.
    """

    path: Path
    options: OpenOptions
    ours: tuple[Path, ...] = ()
    whole: bool = False
    table: Table = field(default_factory=dict)
    _since: dict[Path, float] = field(default_factory=dict)
    _at: dict[Path, list[Path]] = field(default_factory=dict)  # the files at and below each path
    _looked: float = 0.0  # when; by a clock that is never at 0

    def look(self) -> bool:
        """Look at names, sizes and times alone; return whether anything is other than it was."""
        look_anew([self.path])
        now, table = time.monotonic(), self._stats()
        self._since = {path: self._since[path] if self.table.get(path) == info else now for path, info in table.items()}
        changed, self.table = not self._looked or table != self.table, table
        self._looked = now
        if changed:
            self._at = {}
            for file, info in table.items():
                for place in (file, *file.parents) if info.is_file else ():
                    self._at.setdefault(place, []).append(file)
        return changed

    def quiet_for(self, path: Path) -> float:
        """Return for how many seconds all that lies at a path had been as it is when it was looked at last."""
        since = [self._since[file] for file in self.files_at(path)]
        return self._looked - max(since) if since else 0.0

    def files_at(self, path: Path) -> list[Path]:
        """Return the files at and below a path."""
        return self._at.get(path, [])

    def look_of(self, path: Path) -> str:
        """Return what tells the files at a path from what they were, or will be, without reading them.

        Other rights make another look, too: who sees one compares the contents.
        """
        digest = hashlib.sha256()
        for file in sorted(self.files_at(path)):
            info = self.table[file]
            _, _, *written = info.identity.parts if info.identity is not None else (0, 0)
            name = file.relative_to(path).as_posix() if file != path else ""
            digest.update(f"{name}\0{info.size} {written} {info.changed}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def age_of(self, path: Path) -> float:
        """Return how many seconds ago the files at a path were written last, by their own times; 0 without any."""
        times = [self.table[file].written for file in self.files_at(path)]
        return time.time() - max(times) if times else 0.0

    def is_as_looked_at(self, checkpoint: Checkpoint) -> bool:
        """Return whether the files of a checkpoint were as they are already when they were looked at."""
        looks = ((self.table.get(file.path), file.identity) for file in checkpoint.files)
        return all(info is None or info.identity == identity for info, identity in looks)

    def is_there(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint still lies where it was found, as it was when it was looked at."""
        try:
            look_anew([self.path])
            now = ((location(file.path).info(), file) for file in checkpoint.files)
            same = all(info.identity == file.identity and self.table.get(file.path, info) == info for info, file in now)
            around = self.files_at(checkpoint.path) if self.whole else ()
            return same and all(location(path).info() == self.table[path] for path in around)
        except CheckpointError:
            return False

    def check_there(self, checkpoint: Checkpoint) -> None:
        """Raise a CheckpointError if a checkpoint is not there any more, or not as it was when it was looked at."""
        if not self.is_there(checkpoint):
            raise CheckpointError("is gone, or changed while it was read", subject=checkpoint.path)

    def examine(self) -> Seen:
        """Read the headers of what is there.

        Raises:
            EmaError: as `open_run`, but for what is not complete.
        """
        if not self.table:
            problem = NoWeights("no checkpoint is there yet", subject=self.path, hint=_WAIT)
            return Seen(None, (), problem, may_come=True)
        try:
            run = read_run([self.path], self.options)
        except (IncompleteCheckpoint, NoWeights) as problem:
            return Seen(None, (), problem, may_come=True)
        names = [passed.name for passed in run.passed_over if passed.unfinished]
        names += [damaged.name for damaged in run.damaged]
        pending = [Pending(name, run.root / name, None) for name in dict.fromkeys(names)]
        return Seen(run, tuple(pending))

    def _stats(self) -> dict[Path, Info]:
        """Return what the storage says of each file (which one, how large, when it was changed), and of each folder."""
        place = location(self.path)
        info = place.info()
        if info.is_file:
            return {self.path: info}
        found: dict[Path, Info] = {}
        for entry in walk(self.path, skip_unreadable=True) if info.is_folder else ():
            path = entry.path
            if any(own == path or own in path.parents for own in self.ours):
                continue
            try:
                looked = location(path).info()
            except CheckpointError:
                continue
            if looked.exists:
                found[path] = looked
        return found


def is_marked(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint holds the file that its trainer writes last."""
    return any(location(checkpoint.path / name).info().is_file for name in _LAST_FILES)


def is_last(checkpoint: Checkpoint) -> bool:
    """Return whether its trainer says that the training ends with it: transformers' does."""
    path = checkpoint.path / TRAINER_STATE
    try:
        state: Any = read_json(location(path).open(), _MOST_STATE_BYTES, constants=True)
    except CheckpointError:
        return False
    steps, most = (state.get(name) if isinstance(state, dict) else None for name in ("global_step", "max_steps"))
    return type(steps) is int and type(most) is int and 0 < most <= steps


def with_clock(pending: Iterable[Pending], unit: Unit, run: Run) -> list[Pending]:
    """Return what is pending, with its clock in a unit by its name.

    That is what the name says in words; or its last number, where that is the clock in the names of the run.
    """
    known = [(_last_number(checkpoint.name), checkpoint.clock(unit)) for checkpoint in run.checkpoints]
    numbered = bool(known) and all(number is not None and number == clock for number, clock in known)
    clocked = []
    for one in pending:
        said = name_clocks(one.name).clocks.get(unit)
        clock = said.value if said is not None else _last_number(one.name) if numbered else None
        clocked.append(Pending(one.name, one.path, clock))
    return clocked


def _last_number(name: str) -> Fraction | None:
    found = re.findall("[0-9]+", name)
    return Fraction(int(found[-1])) if found and len(found[-1]) <= _MOST_DIGITS else None
