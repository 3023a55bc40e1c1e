"""Coefficients for checkpoints: the file that holds them, and the checkpoints that they are for. No numpy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, UsageError, option
from ema_cli.formats.json_text import parse_json
from ema_cli.law.coefficients import Coefficients
from ema_cli.law.time import Time
from ema_cli.planning.entry import Entry, Skipped
from ema_cli.planning.named_file import read_named_text
from ema_cli.runs.run import Run
from ema_cli.text import lazy_pattern

_MOST_BYTES = 16 << 20
_MOST_ROWS = 100_000
_NUMBER = lazy_pattern(
    r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:e[+-]?[0-9]{1,3})?", re.IGNORECASE | re.ASCII
)
_TITLES = ("name", "clock", "checkpoint")
_WEIGHT = "weight"
_HINT = 'CSV: on each line a name or a clock, a comma and a number; or JSON: {"step-100": -0.5, "200ba": 1.5}'


class NameAtClock(str):
    """The name of a checkpoint in a file of coefficients that says its clock, too; which must be true then."""

    clock: str

    def __new__(cls, name: str, clock: str) -> NameAtClock:
        """Return the name, with the clock beside it."""
        own = super().__new__(cls, name)
        own.clock = clock
        return own


def read_coefficients(path: Path) -> dict[str, float]:
    """Return the coefficients in a file, by the name or the clock of a checkpoint.

    JSON is an object, or a list of objects with `name` or `clock`, or both, and `weight`; CSV has such columns, and in
    its first line the titles where there are three. A name with a clock is a `NameAtClock`.

    Raises:
        UsageError: where there is no such file, or it holds something else.
    """
    try:
        text = read_named_text(path, _MOST_BYTES, option="coefficients", hint=_HINT)
        is_json = text.lstrip().startswith(("{", "["))
        rows: Sequence[tuple[str, Any]] = _in_json(text) if is_json else _in_csv(text)
        if len(rows) > _MOST_ROWS:
            raise ValueError(f"{len(rows)} coefficients are too many; at most {_MOST_ROWS} are read")
        given: dict[str, float] = {}
        for key, value in rows:
            if key in given:
                raise ValueError(f"'{key[:60]}' stands twice")
            given[key] = float(value)
    except (ValueError, OverflowError) as error:
        raise UsageError(str(error), option="coefficients", subject=path, hint=_HINT) from error
    if not given:
        raise UsageError("holds no coefficient", option="coefficients", subject=path, hint=_HINT)
    return given


def _in_json(text: str) -> list[tuple[str, Fraction | int]]:
    content: Any = parse_json(text.encode())
    if isinstance(content, dict):
        content = [{"name": key, "weight": value} for key, value in content.items()]
    rows: list[tuple[str, Fraction | int]] = []
    for row in content:
        name, clock, value = map(row.get, ("name", "clock", _WEIGHT)) if isinstance(row, dict) else (None, None, None)
        key = name if clock is None else clock if name is None else None
        if isinstance(name, str) and isinstance(clock, str):
            key = NameAtClock(name, clock)
        if not isinstance(key, str) or isinstance(value, bool) or not isinstance(value, int | Fraction):
            raise ValueError("is no object of numbers, and no list of objects with name or clock, and weight")
        rows.append((key, value))
    return rows


def _in_csv(text: str) -> list[tuple[str, str]]:
    import csv  # which few averages need

    rows: list[tuple[str, str]] = []
    try:
        lines = list(csv.reader(text.splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    columns = ["name", _WEIGHT]
    for number, cells in enumerate(lines, 1):
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not rows and cells[0].lower() in _TITLES:
            titles = [title.lower() for title in cells]
            columns = titles if sorted(titles) == ["clock", "name", _WEIGHT] else columns
            continue
        row = dict(zip(columns, cells, strict=False))
        if len(cells) != len(columns) or not _NUMBER.fullmatch(row[_WEIGHT]):
            raise ValueError(f"line {number} has not a name or a clock, and a number")
        key = NameAtClock(row["name"], row["clock"]) if "clock" in row else row["name"]
        rows.append((key, row[_WEIGHT]))
    return rows


def entries_of(run: Run, law: Coefficients) -> tuple[tuple[Entry, ...], list[Skipped]]:
    """Return the checkpoints that have a coefficient, oldest first, and the others.

    Raises:
        RunError: for what is not the name or the clock of one checkpoint, and for one that is meant twice.
        CheckpointError: for a checkpoint that is damaged.
    """
    weights: dict[Checkpoint, float] = {}
    for key, weight in law.shares().items():
        checkpoint = _meant(run, key)
        if checkpoint in weights:
            raise RunError(f"{option('coefficients')} has {checkpoint.name} twice, once as '{key}'", subject=run.root)
        weights[checkpoint] = weight
    entering = [checkpoint for checkpoint in run.checkpoints if checkpoint in weights]
    unit = run.units[0]
    clocks = [checkpoint.progress.clocks[unit].value for checkpoint in entering]
    gaps = [Fraction(0), *(newer - older for older, newer in pairwise(clocks))]
    entries = tuple(
        Entry(checkpoint, Time(clock, unit), gap, weights[checkpoint])
        for checkpoint, clock, gap in zip(entering, clocks, gaps, strict=True)
    )
    others = [checkpoint for checkpoint in run.checkpoints if checkpoint not in weights]
    return entries, [Skipped(checkpoint, "has no coefficient") for checkpoint in others]


def _is_at(checkpoint: Checkpoint, time: Time) -> bool:
    """Return whether a checkpoint is at a time, or at a clock that is shown as that: a third as 0.333333."""
    clock = checkpoint.clock(time.unit)
    return clock is not None and (clock == time.value or str(Time(clock, time.unit)) == str(time))


def _check_clock(run: Run, named: Sequence[Checkpoint], key: NameAtClock) -> None:
    """Check that what has a name in a file of coefficients is at the clock that the file says."""
    time = Time.parse(key.clock, "coefficients")
    wrong = next((checkpoint for checkpoint in named if not _is_at(checkpoint, time)), None)
    if wrong is not None:
        own = wrong.clock(time.unit)
        raise RunError(
            f"{option('coefficients')} has {wrong.name} at {time}, and it "
            f"{f'is at {Time(own, time.unit)}' if own is not None else f'records no clock in {time.unit.plural}'}",
            subject=run.root,
            hint="leave out the name or the clock, whichever is wrong",
        )


def _meant(run: Run, key: str) -> Checkpoint:
    """Return the checkpoint of a name or a clock."""
    for damaged in run.damaged:
        if damaged.name == key:
            raise damaged.error
    named = [checkpoint for checkpoint in run.checkpoints if checkpoint.name == key]
    if isinstance(key, NameAtClock):
        _check_clock(run, named, key)
    elif not named:
        try:
            time = Time.parse(key)
        except UsageError:
            time = None
        named = [] if time is None else [each for each in run.checkpoints if _is_at(each, time)]
    if len(named) == 1:
        return named[0]
    what = "no checkpoint" if not named else f"each of {', '.join(checkpoint.name for checkpoint in named[:3])}"
    raise RunError(
        f"'{key[:200]}' is the name or the clock of {what}",
        subject=run.root,
        hint=f"names and clocks are those that ema-cli inspect {shlex.quote(str(run.root))} shows",
    )
