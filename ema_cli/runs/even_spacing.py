"""Apply --spacing: the k-th checkpoint has the clock k x spacing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, UsageError, option
from ema_cli.law.time import Time
from ema_cli.runs.clocks import OVER, recorded_clocks, with_clock
from ema_cli.runs.name_numbers import NameNumbers
from ema_cli.text import natural_key


def space(
    checkpoints: Sequence[Checkpoint], spacing: Time, recorded: Sequence[Checkpoint], absent: Sequence[str] = ()
) -> tuple[list[Checkpoint], list[str]]:
    """Give the k-th checkpoint, in natural order of names and from 1, the clock k x `spacing`; return warnings, too.

    A name without a number, as `final.pt`, comes last; several such names, or a best one, are said.

    Args:
        checkpoints: those that enter.
        spacing: the distance.
        recorded: all that were opened, with the clocks that they record.
        absent: the names of others that are counted: they were saved, and do not enter.

    Raises:
        UsageError: for a spacing of 0 or infinity.
        RunError: if checkpoints have a clock in that unit already.
    """
    if not 0 < spacing.value < float("inf"):
        raise UsageError(f"'{spacing}' is no distance between checkpoints", option="spacing", hint="as in 100ba")
    unit, step = spacing.unit, Fraction(spacing.value)
    with_one = [checkpoint for checkpoint in checkpoints if unit in checkpoint.progress.clocks]
    if with_one:
        without = next((checkpoint for checkpoint in checkpoints if unit not in checkpoint.progress.clocks), None)
        one_has = f"{with_one[0].name} has a clock in {unit.plural}"
        fact = f"{one_has}, {without.name} has none" if without else f"all checkpoints have a clock in {unit.plural}"
        anew = f"{option('spacing', f'{spacing}')} {option('ignore_clocks', True)}"
        other = "name one of the two kinds" if without else f"leave out {option('spacing')}"
        raise RunError(
            f"{option('spacing', f'{spacing}')}: {fact}",
            hint=f"{other}, or overrule the clocks: {anew}",
        )
    ordered = sorted(checkpoints, key=lambda checkpoint: _name_order(checkpoint.name))
    names = sorted({*absent, *(checkpoint.name for checkpoint in ordered)}, key=_name_order)
    clocks = {name: step * number for number, name in enumerate(names, 1)}
    before = {checkpoint.path: recorded_clocks(checkpoint) for checkpoint in recorded}
    spaced = []
    for checkpoint in ordered:
        was = before.get(checkpoint.path, {})
        # All clocks were set aside if there were some: --spacing alone does not overrule any.
        source = next((clock.source for clock in was.values()), None) if not checkpoint.progress.clocks else None
        given = "spacing" + (f"{OVER}{source}" if source else "")
        spaced.append(with_clock(checkpoint, unit, clocks[checkpoint.name], given))
    return spaced, [*_uneven_warnings(ordered, spacing), *_last_warnings(ordered)]


def _name_order(name: str) -> tuple[object, ...]:
    return not re.search("[0-9]", name), natural_key(name)


def _last_warnings(ordered: Sequence[Checkpoint]) -> list[str]:
    """Return a warning where names without a number, which come last, may well be of earlier moments."""
    names = [checkpoint.name for checkpoint in ordered]
    last = [name for name in names if not re.search("[0-9]", name)]
    if len(last) == len(names) or not last or not (len(last) > 1 or "best" in last[0].lower()):
        return []
    if len(last) > 1:
        which, them, are = f"{last[0]} and {len(last) - 1} more have no number in their names", "them", "they are"
    else:
        which, them, are = f"{last[0]} has no number in its name", "it", "it is"
    return [f"{which}, and --spacing takes {them} for the latest; leave {them} out with --exclude if {are} not"]


def _uneven_warnings(checkpoints: Sequence[Checkpoint], spacing: Time) -> list[str]:
    """Return a warning where the names have numbers that are not as far apart as the spacing makes them."""
    numbers = NameNumbers.of(checkpoint.name for checkpoint in checkpoints)
    column = numbers.column(spacing.unit)
    if column is None or column.is_even:
        return []
    return [
        f"the numbers in the names are not evenly spaced ({column.shown}), and --spacing {spacing} takes them as if "
        f"they were; --name-clock {spacing.unit} counts them as they are"
    ]
