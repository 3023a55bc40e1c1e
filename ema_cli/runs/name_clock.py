"""Apply --name-clock: what the user says that the numbers in names count."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from ema_cli.errors import RunError, UsageError, option
from ema_cli.law.time import UNIT_NAMES, Unit
from ema_cli.runs.name_numbers import NUMBER, NameNumbers, number
from ema_cli.text import lazy_pattern

_FIELD = lazy_pattern(r"\{([a-z]+)\}|([*?])", re.IGNORECASE)
_UNITS = ", ".join(Unit)

Values = Callable[[str], Mapping[Unit, Fraction]]
"""From the name of a checkpoint to its clocks; empty where the name has none."""


def name_clocks_by(text: str, names: Sequence[str]) -> Values:
    """Return how the names of these checkpoints are read by the value of --name-clock: a unit, or a pattern.

    Raises:
        UsageError: for a value that is neither.
        RunError: where no number in the names grows, or several do and it is not clear which one is meant.
    """
    unit = UNIT_NAMES.get(text.lower())
    if unit is None:
        return _by_pattern(text)
    numbers = NameNumbers.of(names)
    column = numbers.column(unit) or (numbers.columns[0] if len(numbers.columns) == 1 else None)
    if column is not None:
        return lambda name: {} if (value := column.value(name)) is None else {unit: value}
    offered = numbers.offer(unit)
    if offered is None:
        raise RunError(
            f"{option('name_clock', text)}: no number in the names of the checkpoints grows",
            hint=f"say how far apart they are, with {option('spacing')} and a time",
        )
    several = " and ".join(column.shown for column in numbers.columns)
    raise RunError(
        f"{option('name_clock', text)}: several numbers in the names grow: {several}",
        hint=f"say which one it is, as in {option('name_clock', offered)}",
    )


def _by_pattern(text: str) -> Values:
    """Return how names are read by a pattern, in which * and ? are as in a shell and {ba} is a number of batches."""
    if not re.search(r"[{*?]", text):
        raise UsageError(
            f"'{text}' is no unit, and no pattern of names",
            option="name_clock",
            hint=f"one of {_UNITS}, or a name with such a unit in braces where the number is",
        )
    expression, at, units = "", 0, list[Unit]()
    for field in _FIELD.finditer(text):
        expression += re.escape(text[at : field.start()])
        at = field.end()
        if field[2]:
            expression += ".*?" if field[2] == "*" else "."
            continue
        unit = UNIT_NAMES.get(field[1].lower())
        if unit is None or unit in units:
            wrong = f"has two numbers of {unit.plural}" if unit else f"has '{field[0]}', which is no unit"
            raise UsageError(f"'{text}' {wrong}", option="name_clock", hint=f"each of {_UNITS} at most once")
        units.append(unit)
        expression += f"({NUMBER})"
    if not units:
        raise UsageError(f"'{text}' has no unit in it", option="name_clock", hint=f"one of {_UNITS}, in braces")
    pattern = re.compile(expression + re.escape(text[at:]), re.IGNORECASE)

    def values(name: str) -> Mapping[Unit, Fraction]:
        parts = [name] if "/" in text else [*reversed(name.split("/"))]
        match = next((match for part in parts if (match := pattern.fullmatch(part))), None)
        return dict(zip(units, map(number, match.groups()), strict=True)) if match else {}

    return values
