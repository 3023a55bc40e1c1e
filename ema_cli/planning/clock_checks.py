"""Check that a run has the clocks that a recipe needs, and that they do not go back; say what helps where they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from glob import escape
from itertools import pairwise

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, option
from ema_cli.formats.clock_hints import counters_of
from ema_cli.formats.trainers.names import unit_before
from ema_cli.law.bema import Bema
from ema_cli.law.exponential import HalfLife
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.entry import COUNTED
from ema_cli.runs.clocks import with_clock
from ema_cli.runs.entering import averaged_error
from ema_cli.runs.name_numbers import NameNumbers, advise_name_clock
from ema_cli.runs.order import Fall, falls
from ema_cli.runs.run import Run
from ema_cli.runs.spacing import measure_spacing
from ema_cli.text import natural_key, plural

_MOST_PARTS = 4  # of a run, in one message
_HALF_LIFE, _INTERVAL = "the half-life", "the update interval"
_PROFILE = "the profile"  # whose unit is its own, and no option says it
_FEW = 3  # checkpoints that a hint names one by one


def unit_needed_by(recipe: Recipe) -> str:
    """Return what in a recipe needs clocks in its unit."""
    if recipe.law.window:
        return option("window")
    if isinstance(recipe.law, Bema):
        return _PROFILE
    return _HALF_LIFE if recipe.law.unit else _INTERVAL if recipe.interval else _PROFILE


def check_units(run: Run, recipe: Recipe) -> None:
    """Check that all checkpoints have clocks in the units that the recipe needs.

    Raises:
        RunError: naming one that has none, and the ways on.
    """
    law = recipe.law
    # A share of the training so far needs its unit; it is no time of its own.
    needed = law.half_life if isinstance(law, HalfLife) else Time(Fraction(0), law.unit) if law.unit else None
    for time, what in (
        (law.window or needed or recipe.interval, unit_needed_by(recipe)),
        (recipe.start, option("start")),
        (recipe.stop, option("stop")),
    ):
        if time is not None:
            check_clocks(run, time, what)
    if not run.units:
        ways = [
            _advise_clock_key(run.checkpoints, Unit.BATCH),
            advise_name_clock(run.checkpoints, Unit.BATCH),
            _space(Time(Fraction(1), Unit.BATCH)),
        ]
        some = any(checkpoint.progress.clocks for checkpoint in run.checkpoints)
        lack = "have no clock in one unit" if some else "record no clock"
        raise RunError(
            f"the checkpoints {lack}, and names alone give no order that is safe",
            subject=run.root,
            hint=", or ".join(filter(None, ways)),
        )


def check_clocks(run: Run, time: Time, what: str) -> None:
    """Check that all checkpoints have a clock in the unit of a time, which `what`, a part of the recipe, asks for.

    Raises:
        RunError: naming one that has none, and the ways on.
    """
    unit = time.unit
    missing = next((checkpoint for checkpoint in run.checkpoints if unit not in checkpoint.progress.clocks), None)
    if missing is None:
        return
    if missing.averaged:
        raise averaged_error(missing)
    known = ", ".join(f"{unit.plural} ({unit})" for unit in missing.progress.clocks) or "none"
    ignored = run.options.ignore_clocks
    ways = [
        None if ignored else _advise_clock_key(run.checkpoints, unit),
        _leave_out(run.checkpoints, unit) or advise_name_clock(run.checkpoints, unit),
        f"{_space(_half(time))}, for {option('ignore_clocks', True)} leaves none" if ignored else None,
    ]
    ways += [_count_in(run.checkpoints, other, what) for other in run.units if not falls(run.checkpoints, other)]
    if unit in (Unit.EPOCH, Unit.BATCH) and {Unit.EPOCH, Unit.BATCH} <= {unit, *missing.progress.clocks}:
        ways.append(f"convert, with the batches of an epoch: {option('epoch_length')}")
    if not missing.progress.clocks and not ignored:
        ways += [_space_evenly(run.checkpoints, time), f"let all count alike: {option('profile', 'uniform')}"]
    has_none = f"has no clock in {unit.plural} that is used" if ignored else f"records no clock in {unit.plural}"
    raise RunError(
        f"{has_none}, which {what} needs; known: {known}",
        subject=missing.path,
        hint=", or ".join(filter(None, ways)) or None,
    )


def _leave_out(checkpoints: Sequence[Checkpoint], unit: Unit) -> str | None:
    """Return the advice to leave out the few checkpoints without a clock; None where many have none."""
    without = [checkpoint.name for checkpoint in checkpoints if unit not in checkpoint.progress.clocks]
    if len(without) > _FEW or 2 * len(without) >= len(checkpoints):
        return None
    return f"leave out what has none: {' '.join(option('exclude', escape(name)) for name in without)}"


def _advise_clock_key(checkpoints: Sequence[Checkpoint], unit: Unit) -> str | None:
    """Return the advice to take an integer that the files hold, None where none differs from one file to the other."""
    known = {clock.value for clock in checkpoints[-1].progress.clocks.values()}
    before, last = counters_of(checkpoints[0]), counters_of(checkpoints[-1])
    alone = len(checkpoints) == 1
    grown = {
        place: count
        for place, count in last.items()
        if count not in known and (alone or before.get(place, count) != count)
    }
    if not grown:
        return None
    named = [place for place in grown if unit_before(place) is unit]
    taken = option("clock_key", f"{(named or list(grown))[0]}={unit}")
    from ema_cli.formats.trainers.counters import listed  # which knows pickles

    return f"take the number that counts {unit.plural}; {listed(grown)}: {taken}"


def _half(time: Time) -> Time:
    """Return a distance at which about two checkpoints lie in a time; a whole one, but for epochs."""
    if not 0 < time.value < math.inf:
        return Time(Fraction(1), time.unit)
    half = Fraction(time.value) / 2
    return Time(half if time.unit is Unit.EPOCH else Fraction(math.ceil(half)), time.unit)


def _space_evenly(checkpoints: Sequence[Checkpoint], time: Time) -> str | None:
    """Return the advice to space checkpoints, as numbers in their names are; None where these are uneven."""
    column = NameNumbers.of(checkpoint.name for checkpoint in checkpoints).column(time.unit)
    if column is None:
        return _space(_half(time))
    spacing = measure_spacing(sorted(column.values))
    counts_saves = spacing is None or spacing.usual == 1  # 1, 2, 3 may be anything apart
    usual = _half(time) if spacing is None or counts_saves else Time(spacing.usual, time.unit)
    return _space(usual) if column.is_even else None


def _space(distance: Time) -> str:
    return f"say how far apart the checkpoints are, as {option('spacing', str(distance))} says it"


def _count_in(checkpoints: Sequence[Checkpoint], unit: Unit, what: str) -> str | None:
    """Return the advice to ask in another unit, with a time that fits the run; None where no option says the unit."""
    if what == _PROFILE:
        return None
    spacing = measure_spacing([_clock(checkpoint, unit) for checkpoint in checkpoints])
    if what not in (_HALF_LIFE, _INTERVAL) or spacing is None:
        return f"give {what} in {unit.plural}"
    name = "half_life" if what == _HALF_LIFE else "update_interval"
    twice = option(name, str(Time(2 * spacing.usual, unit)))
    return f"count in {unit.plural}: {twice} is twice the usual distance of checkpoints"


def count_names(run: Run) -> Run:
    """Return a run without clocks whose checkpoints are counted, 1ba apart: an average of all alike needs no more."""
    counted = [
        with_clock(checkpoint, Unit.BATCH, Fraction(number), COUNTED)
        for number, checkpoint in enumerate(run.checkpoints, 1)
    ]
    if len(counted) == 1:
        return replace(run, checkpoints=tuple(counted), units=(Unit.BATCH,))
    alike = "the checkpoints have no common clock: all count alike"
    newest = f"{alike}, and {counted[-1].name} is taken for the newest, by its name"
    return replace(run, checkpoints=tuple(counted), units=(Unit.BATCH,), notes=(*run.notes, newest))


def check_order(run: Run, checkpoints: Sequence[Checkpoint], unit: Unit, what: str) -> None:
    """Check that the clock in a unit does not go back from one of these checkpoints to the next.

    Args:
        run: the run that they are of.
        checkpoints: those that are asked for, in the order of the run.
        unit: the unit of the clock.
        what: what in the recipe needs it.

    Raises:
        RunError: naming the place where it does, and what can be averaged all the same.
    """
    found = falls(checkpoints, unit)
    if not found:
        return
    last = found[-1]
    ways = [
        _numbers_that_rise(checkpoints, unit),
        _begins_again(run, checkpoints, found) or _last_part(run, checkpoints, found, what),
    ]
    raise RunError(
        f"{last.words(run.units[0])}, and {what} counts {unit.plural}",
        subject=last.newer.path,
        hint="; or ".join(filter(None, ways)),
    )


def _numbers_that_rise(checkpoints: Sequence[Checkpoint], unit: Unit) -> str | None:
    """Return the advice to count the numbers in names, where these do not go back; None where they do."""
    column = NameNumbers.of(checkpoint.name for checkpoint in checkpoints).column(unit)
    values = [column.value(checkpoint.name) for checkpoint in checkpoints] if column else []
    known = [value for value in values if value is not None]
    rise = len(known) == len(checkpoints) and all(older < newer for older, newer in pairwise(known))
    return advise_name_clock(checkpoints, unit) if rise else None


def _last_part(run: Run, checkpoints: Sequence[Checkpoint], found: Sequence[Fall], what: str) -> str:
    """Return the hint for a run that was resumed with another count: its parts, and how to average the last."""
    leading, last = run.units[0], found[-1]
    begins = [0, *(checkpoints.index(fall.newer) for fall in found), len(checkpoints)]
    parts = [f"{checkpoints[begin].name} to {checkpoints[end - 1].name}" for begin, end in pairwise(begins)]
    shown = "; ".join([*(["..."] if len(parts) > _MOST_PARTS else []), *parts[-_MOST_PARTS:]])
    ways: list[str | None] = []
    if _clock(last.newer, leading) > _clock(last.older, leading):
        start = option("start", str(Time(_clock(last.newer, leading), leading)))
        count = plural(len(checkpoints) - begins[-2], "checkpoint")
        ways.append(f"average the last part, of {count}: {start}")
    ways.append(_count_in(checkpoints, leading, what))
    return f"the parts of this run are {shown}; " + ", or ".join(filter(None, ways))


def _begins_again(run: Run, checkpoints: Sequence[Checkpoint], found: Sequence[Fall]) -> str | None:
    """Return the hint for counters that begin again in each epoch; None where these do not."""
    unit, leading = found[0].unit, run.units[0]
    ends = [pair for pair in pairwise(checkpoints) if _clock(pair[0], leading) != _clock(pair[1], leading)]
    by_name = sorted(checkpoints, key=lambda checkpoint: natural_key(checkpoint.name))
    if leading is not Unit.EPOCH or [(fall.older, fall.newer) for fall in found] != ends or by_name != [*checkpoints]:
        return None
    steps = [
        newer.progress.clocks[unit].value - older.progress.clocks[unit].value
        for older, newer in pairwise(checkpoints)
        if _clock(older, leading) == _clock(newer, leading)
    ]
    if not steps or len(set(steps)) > 1:
        return None
    spaced = f"{option('spacing', str(Time(steps[0], unit)))} {option('ignore_clocks', True)}"
    return f"they seem to begin again in each epoch; where no checkpoint is missing, count anew: {spaced}"


def _clock(checkpoint: Checkpoint, unit: Unit) -> Fraction:
    return checkpoint.progress.clocks[unit].value
