"""What parts and workers tell of themselves beside a place where nothing is yet: what is done, and who is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, Missing, option
from ema_cli.storage.location import location, look_anew, names_around, names_in
from ema_cli.storage.names import HUB, WEB, StorePath
from ema_cli.storage.small_file import read_small_file, write_small_file
from ema_cli.storage.staging.local import SHARED_PREFIX, TASKS
from ema_cli.text import plural, some

PASSES = "passes"
"""What all parts need alike, too: in how many passes they make several averages."""
_NOTE = re.compile(r"part-([0-9]{1,6})-of-([0-9]{1,6})\.json")
_RECORD = re.compile(r"[0-9]{5,}\.json")
_MOST_BYTES = 16 << 20
# What is there is not whole, or no note: 1e999 is infinity in Python's JSON.
_NO_NOTE = (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class BegunPart:
    """A part of an average that was begun, as it tells of itself.

    Attributes:
        number, count: which part, of how many.
        target: the name of what all parts make together.
        tasks: the numbers of its own tasks, by the folder in which these tell of themselves.
        alike: what has to be alike in all parts, by its name.
    """

    number: int
    count: int
    target: str
    tasks: Mapping[str, Sequence[int]]
    alike: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Leave this in a folder that all parts see.

        Raises:
            OutputError: where that is refused.
        """
        path = folder / f"part-{self.number}-of-{self.count}.json"
        write_small_file(path, json.dumps({"target": self.target, "tasks": self.tasks, "alike": self.alike}))


@dataclass(frozen=True, slots=True)
class _Begun:
    """A part, and how many of its tasks are done."""

    part: BegunPart
    done: int

    @property
    def is_made(self) -> bool:
        return self.done == self._tasks

    @property
    def _tasks(self) -> int:
        return sum(map(len, self.part.tasks.values()))

    def __str__(self) -> str:
        return f"{self.part.number} ({self.done} of {self._tasks} tasks done)"


def record_name(number: int) -> str:
    """Return the name of the file in which it is kept what became of a task."""
    return f"{number:05}.json"


def is_wanted(folder: Path, *, after_loss: bool) -> bool:
    """Return whether somebody goes on with what was made, by what is told in a folder; so where it cannot be read.

    Parts do, and, after a loss of workers, whoever makes the same average again, if any of its tasks is done.
    """
    look_anew([folder])
    try:
        names = location(folder).names()
    except Missing:
        return False
    except CheckpointError:
        return True
    if any(map(_NOTE.fullmatch, names)):
        return True
    return after_loss and _count_records(folder) > 0


def not_there_yet(path: Path) -> tuple[str, str] | None:
    """Return what is in the making at a path where nothing is, and how it gets there; None where nobody has begun.

    What lies in the folder of several averages is made with that.
    """
    if isinstance(path, StorePath) and path.scheme in (HUB, *WEB):
        return None  # nothing is written there
    places = [path] if names_around(path.parent) else [path, path.parent]
    for place in places:
        begun = _begun_at(place) if place.name else []
        if begun:
            return _fact(begun), _hint(begun)
        done = _count_done(place) if place.name else 0
        if done:
            return (
                f"is not there yet, but in the making: workers have done {plural(done, 'task')}",
                "run the same command again, unless it still runs: it goes on with that",
            )
    return None


def begun_inside(folder: Path) -> tuple[str, str] | None:
    """Return what is in the making in a folder that holds nothing else, and how it gets there; None for other folders.

    Of several, the first.
    """
    names = names_in(folder)
    if not all(name.startswith(".") for name in names):
        return None
    begun = set[str]()
    for name in names:
        if isinstance(folder, StorePath):
            begun.update({name[1:].rpartition(SHARED_PREFIX)[0]} if SHARED_PREFIX in name else ())
        elif name.startswith(SHARED_PREFIX):
            begun.update(each.part.target for each in _parts_in(folder / name / TASKS))
    said = ((name, not_there_yet(folder / name)) for name in sorted(begun))
    return next(((f"{name} {about[0]}", about[1]) for name, about in said if about is not None), None)


def others_at(target: Path, own: BegunPart) -> list[str]:
    """Return, in words, which parts of a target make no whole with one, and why."""
    found = []
    for parts in _begun_at(target):
        for count, some_parts in _by_count(parts):
            names = _ranges(each.part.number for each in some_parts)
            if some_parts[0].part.alike != own.alike:
                what = difference(own.alike, some_parts[0].part.alike)
                found.append(f"part {names} of {count} was begun {what}: all parts need the same")
            elif count != own.count:
                found.append(f"part {names} was begun as one of {count}, this one of {own.count}: all need one number")
    return found


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Return, in words, what another average differs in: the first thing, as others follow from it."""
    for name, value in one.items():
        theirs = other.get(name)
        if theirs != value:
            if name == PASSES:
                return f"in {theirs or 'other passes'}, by its memory or its open files"
            return f"with other {name}" if theirs is None or len(theirs) > 40 else f"with {name} {theirs}"
    return "otherwise"


def _begun_at(place: Path) -> list[list[_Begun]]:
    """Return the parts of each average that is made at a place."""
    found = dict[tuple[str, ...], list[_Begun]]()
    parts = (each for folder in _told_at(place) for each in _parts_in(folder) if each.part.target == place.name)
    for each in sorted(parts, key=lambda each: (each.part.count, each.part.number)):
        found.setdefault(tuple(each.part.alike.values()), []).append(each)
    return list(found.values())


def _told_at(place: Path) -> list[Path]:
    """Return the folders in which those tell of themselves who make something at a place, or beside it on a disk."""
    names, around = sorted(names_around(place.parent)), place.parent
    if isinstance(place, StorePath):
        return [around / name for name in names if name.startswith(f".{place.name}{SHARED_PREFIX}")]
    return [around / name / TASKS for name in names if name.startswith(SHARED_PREFIX)]


def _count_done(place: Path) -> int:
    """Return how many tasks are done of what is made at a place."""
    told = _told_at(place)
    if not isinstance(place, StorePath):
        told = [folder for folder in told if place.name in names_in(folder.parent)]
    return sum(map(_count_records, told))


def _count_records(folder: Path) -> int:
    """Return how many tasks are done, of all who tell of themselves in a folder."""
    return sum(_RECORD.fullmatch(name) is not None for inner in names_in(folder) for name in names_in(folder / inner))


def _parts_in(folder: Path) -> Iterable[_Begun]:
    done: dict[str, Collection[str]] = {}
    for name in filter(None, map(_NOTE.fullmatch, names_in(folder))):
        with suppress(CheckpointError, *_NO_NOTE):
            number, of = int(name[1]), int(name[2])
            if number >= of:
                continue  # no part has such numbers
            said = json.loads(read_small_file(folder / name[0], _MOST_BYTES))
            tasks = {str(inner): [int(task) for task in own] for inner, own in said["tasks"].items()}
            alike = {str(name): str(value) for name, value in said["alike"].items()}
            for inner in tasks:
                done.setdefault(inner, frozenset(names_in(folder / Path(inner).name)))
            count = sum(record_name(task) in done[inner] for inner, own in tasks.items() for task in own)
            yield _Begun(BegunPart(number, of, str(said["target"]), tasks, alike), count)


def _by_count(parts: Iterable[_Begun]) -> list[tuple[int, list[_Begun]]]:
    return [(count, list(some_parts)) for count, some_parts in groupby(parts, key=lambda each: each.part.count)]


def _missing(count: int, parts: Iterable[_Begun]) -> list[int]:
    return sorted({*range(count)} - {each.part.number for each in parts})


def _fact(begun: Sequence[Sequence[_Begun]]) -> str:
    (first, *_), *others = begun
    states = ["; ".join(_state(*each) for each in _by_count(parts)) for parts in begun]
    if not others:
        return f"is not there yet, but in the making: {states[0]}"
    differing = (f"{difference(first.part.alike, parts[0].part.alike)}, " for parts in others)
    described = "; ".join(f"{words}{state}" for words, state in zip(["", *differing], states, strict=True))
    return f"is not there yet, and {len(states)} different averages are in the making: {described}"


def _state(count: int, parts: Sequence[_Begun]) -> str:
    made, missing = [each.part.number for each in parts if each.is_made], _missing(count, parts)
    begun = [str(each) for each in parts if not each.is_made]
    are = [(_ranges(made), len(made), "made"), (some(begun), len(begun), "begun")]
    are.append((_ranges(missing), len(missing), "missing"))
    words = [f"{numbers} {'is' if number == 1 else 'are'} {state}" for numbers, number, state in are if number]
    return f"of {plural(count, 'part')}, {', '.join(words)}"


def _hint(begun: Sequence[Sequence[_Begun]]) -> str:
    if len(begun) > 1:
        return "run all parts with the same checkpoints, options and versions; the last one publishes"
    (parts,) = begun
    count, fewest = min(_by_count(parts), key=lambda each: len(_missing(*each)))
    missing = _missing(count, fewest)
    died = [each.part.number for each in fewest if not each.is_made]
    wanted = sorted([*missing, *died])
    example = option("part", f"{(wanted or [0])[0]}/{count}")
    if not wanted:
        return f"run any part again, unless one is just publishing: {example}"
    again = ", what is begun unless it still runs" if died else ""
    return f"run {_ranges(wanted)} of {count} as the others were run{again}: {example}"


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers in order as text, as `0-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
