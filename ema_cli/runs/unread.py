"""Decide what becomes of paths in a run's folder that could not be opened: passed over with a word, or an error.

What a name is worth is decided here, once. A path fits the run if its name is that of a checkpoint but for the numbers:
`step-30.pt.gz` fits `step-10.pt`, `jit_script.pt` does not. In a run without any number or clock, every name fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from fractions import Fraction
from pathlib import Path, PurePosixPath

from ema_cli.checkpoint import Checkpoint, Progress
from ema_cli.dataclass import dataclass
from ema_cli.errors import (
    CheckpointError,
    EmaError,
    IncompleteCheckpoint,
    NoWeights,
    RunError,
    Unfinished,
    at_terminal,
    mentioned,
    option,
)
from ema_cli.formats import WHAT_IS_READ
from ema_cli.formats.trainers.names import FOREIGN_SUFFIXES, WEIGHT_SUFFIXES, name_clocks, stem
from ema_cli.law.time import Time, Unit
from ema_cli.runs.beside import kind_of
from ema_cli.runs.order import PREFERENCE
from ema_cli.runs.passed_over import PassedOver
from ema_cli.storage.location import names_in
from ema_cli.text import natural_key, plural, some

_DIGITS = re.compile(r"[0-9]")
_DECIMAL = re.compile(r"#(?:[.,]#)+")
_VERSION = re.compile(r"-v[0-9]+$")  # Lightning's, where a file of that name was there

_Age = tuple[list[Fraction], tuple[tuple[int, str], ...]]


@dataclass(frozen=True, slots=True)
class Unread:
    """A path that could not be opened, by the name that is shown, and why."""

    name: str
    path: Path
    error: EmaError


@dataclass(frozen=True, slots=True)
class Damaged:
    """A checkpoint of the run that cannot be read, and the error that refuses it."""

    name: str
    error: CheckpointError


@dataclass(slots=True)
class Sorted:
    """What does not enter a run.

    Attributes:
        passed_over: all of it.
        damaged: the checkpoints of it at which an average stops.
        absent: the names of those that were saved in the run, and count where clocks are spaced.
    """

    passed_over: list[PassedOver] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def exclude(name: str, pattern: str) -> PassedOver:
    """Return what is said of a path that the user leaves out by a pattern."""
    return PassedOver(name, f"--exclude '{pattern}'", excluded=True)


def sort_unread(
    unread: Sequence[Unread], opened: Sequence[Checkpoint], excluded: Sequence[PassedOver] = (), *, skip_damaged: bool
) -> Sorted:
    """Sort the paths of a run's folder that were not opened.

    A damaged checkpoint is one whose name fits the run, unless it is still being written: the newest one that is not
    whole, or what its trainer calls unfinished.

    Args:
        unread: the paths that could not be opened.
        opened: the checkpoints of the run.
        excluded: the paths that the user leaves out.
        skip_damaged: whether damaged checkpoints are left out, too.

    Raises:
        EmaError: where a checkpoint of the run does not fit the options.
    """
    names = _Names(opened)
    fitting = [name for checkpoint in opened for name in _own_names(checkpoint)]
    fitting += [entry.name for entry in unread if names.fit(entry.name)]
    ages = {name: names.age(name) for name in fitting}
    sorted_ = Sorted(list(excluded), absent=[passed.name for passed in excluded if names.fit(passed.name)])
    for entry in unread:
        beside, newer = names.beside(entry.name), _newer(entry, opened, ages)
        if entry.name not in ages:
            is_said = not entry.name.lower().endswith(FOREIGN_SUFFIXES)  # which nobody takes for a checkpoint
            is_other = isinstance(entry.error, NoWeights)
            said = PassedOver(entry.name, _reason(entry), warn=is_said and not is_other, note=is_said and is_other)
            sorted_.passed_over.append(said)
        elif beside is not None:
            sorted_.passed_over.append(PassedOver(entry.name, f"beside {beside}; {_reason(entry)}"))
        elif isinstance(entry.error, Unfinished) or (isinstance(entry.error, IncompleteCheckpoint) and newer is None):
            reason = f"half-written: {_reason(entry)}"
            sorted_.passed_over.append(PassedOver(entry.name, reason, warn=True, unfinished=True))
        elif isinstance(entry.error, CheckpointError):
            reason = _damaged_reason(entry, skip=skip_damaged)
            sorted_.passed_over.append(PassedOver(entry.name, reason, warn=True, damaged=True))
            sorted_.damaged += [] if skip_damaged else [_damaged(entry, _place(entry, newer, opened))]
            sorted_.absent.append(entry.name)
        else:
            raise entry.error
    return sorted_


def family(name: str) -> str:
    """Return a name without suffixes, with `#` in place of its numbers: that of all checkpoints of a run."""
    return _DECIMAL.sub("#", kind_of(_VERSION.sub("", stem(name))))


def no_checkpoint(
    folder: Path, unread: Sequence[Unread], excluded: Sequence[PassedOver], averages: Sequence[str] = ()
) -> EmaError:
    """Return the error for a folder in which no path could be opened, but for `averages`, which we have made."""
    errors = [entry.error for entry in unread]
    other = next((error for error in errors if not isinstance(error, IncompleteCheckpoint | NoWeights)), None)
    if other is not None:
        return other
    incomplete = next((error for error in errors if isinstance(error, IncompleteCheckpoint)), None)
    if incomplete is not None:
        return IncompleteCheckpoint(f"no complete checkpoint: {incomplete.message(mentioned)}", subject=folder)
    if errors:
        fact = f"no checkpoint: {errors[0].message(mentioned)}"
        return NoWeights(fact, subject=folder, hint=errors[0].advice(mentioned))
    if excluded:
        fact = f"no checkpoint is left: {option('exclude')} leaves out {plural(len(excluded), 'checkpoint')}"
        return RunError(fact, subject=folder, hint=f"leave out fewer; it left out {excluded[0].name}")
    if averages:
        fact = f"no checkpoint in this folder, only averages that ema-cli made: {some(averages)}"
        return NoWeights(fact, subject=folder, hint="name the folder of the training run, or one of these averages")
    states = sorted(name for name in names_in(folder) if name.lower().endswith(WEIGHT_SUFFIXES))
    if states:
        return NoWeights(
            f"no checkpoint in this folder, only what training keeps beside one: {some(states)}", subject=folder
        )
    from ema_cli.storage.begun_parts import begun_inside  # which only an error needs

    if (begun := begun_inside(folder)) is not None:
        return NoWeights(f"no checkpoint in this folder: {begun[0]}", subject=folder, hint=begun[1])
    return NoWeights("no checkpoint in this folder", subject=folder, hint=WHAT_IS_READ)


def _reason(unread: Unread) -> str:
    """Return why a path does not enter that may be no checkpoint at all."""
    message = unread.error.message(at_terminal, known=unread.path)
    return f"no weights: {message}" if isinstance(unread.error, NoWeights) else message


def _own_names(checkpoint: Checkpoint) -> list[str]:
    """Return the names by which a checkpoint may be known: its own, and those of the folders around it in the run."""
    return [checkpoint.name, *(parent.as_posix() for parent in PurePosixPath(checkpoint.name).parents[:-1])]


class _Names:
    """The names of a run's checkpoints."""

    def __init__(self, opened: Sequence[Checkpoint]) -> None:
        self._stems = {stem(checkpoint.name): checkpoint.name for checkpoint in opened}
        self._families = {family(name) for checkpoint in opened for name in _own_names(checkpoint)}
        has_clocks = any(checkpoint.progress.clocks for checkpoint in opened)
        self._all_fit = not has_clocks and not any(map(_DIGITS.search, self._stems))

    def fit(self, name: str) -> bool:
        """Return whether a name is one of the run's but for its numbers."""
        own = family(name)
        if self._all_fit:
            return not name.lower().endswith(FOREIGN_SUFFIXES)
        return "#" in own and own in self._families

    def beside(self, name: str) -> str | None:
        """Return the checkpoint that has this name with another suffix."""
        return self._stems.get(stem(name))

    def age(self, name: str) -> tuple[str, _Age]:
        """Return the family of a name, and a sort key in it: by the clocks in the name, then by its numbers."""
        clocks = name_clocks(name).clocks
        values = [clocks[unit].value for unit in PREFERENCE if unit in clocks]
        return "" if self._all_fit else family(name), (values, natural_key(stem(name)))


def _newer(unread: Unread, opened: Sequence[Checkpoint], ages: Mapping[str, tuple[str, _Age]]) -> str | None:
    """Return the name of the next newer checkpoint, by its name or by the batches it records; None if none is."""
    if unread.name not in ages:
        return None
    own, age = ages[unread.name]
    later = [(others_age, name) for name, (other, others_age) in ages.items() if other == own and others_age > age]
    if later:
        return min(later)[1]
    batch = name_clocks(unread.name).clocks.get(Unit.BATCH)
    if batch is None:
        return None
    return next((newer.name for newer in opened if (newer.clock(Unit.BATCH) or 0) > batch.value), None)


def _place(unread: Unread, newer: str | None, opened: Sequence[Checkpoint]) -> str:
    """Return where in the run a damaged checkpoint is: its clock by its name, else that of the next newer one."""
    clocks = _clocks(unread.name)
    parts = [f"at {clocks} by its name"] if clocks else []
    if newer is None:
        return "; ".join([*parts, "a checkpoint of this run, by its name"])
    recorded = next((checkpoint.progress for checkpoint in opened if checkpoint.name == newer), Progress())
    known = [str(Time(clock.value, unit)) for unit, clock in recorded.clocks.items() if unit is not Unit.EPOCH]
    at = f", at {known[0]}," if known and not clocks else ""
    return "; ".join([*parts, f"not the newest: {newer}{at} is newer"])


def _damaged(unread: Unread, place: str) -> Damaged:
    subject = unread.error.subject or unread.path
    advice = unread.error.advice(mentioned)
    leave = f"leave it out: {option('skip_damaged', True)}"
    error = CheckpointError(
        f"{unread.error.message(mentioned, known=subject)} ({place})",
        subject=subject,
        hint=f"{advice}; or {leave}" if advice else f"bring it back as it was written, or {leave}",
    )
    return Damaged(unread.name, error)


def _damaged_reason(unread: Unread, *, skip: bool) -> str:
    """Return the words for a list."""
    way = "left out by --skip-damaged" if skip else "an average needs --skip-damaged"
    clocks = _clocks(unread.name)
    return f"damaged ({f'{clocks}; ' if clocks else ''}{way}): {unread.error.message(at_terminal, known=unread.path)}"


def _clocks(name: str) -> str:
    return ", ".join(str(Time(clock.value, unit)) for unit, clock in name_clocks(name).clocks.items())
