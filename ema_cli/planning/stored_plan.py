"""From stored averages to a plan: the combination of them that comes nearest to the average of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np

from ema_cli.errors import RunError, UsageError, option
from ema_cli.law.exponential import HalfLife
from ema_cli.law.law import LiveLaw
from ema_cli.law.live import NEAR, NEAR_ENOUGH
from ema_cli.law.profile import Moment, Stored
from ema_cli.law.recipe import Recipe
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.synthesis import Profiles, Synthesis
from ema_cli.law.time import EVERY, Time, Unit
from ema_cli.planning.entry import Entry
from ema_cli.planning.plan import Approximation, Plan
from ema_cli.planning.stored_rounding import measure_rounding
from ema_cli.planning.stored_shares import combined_shares, cut_in_stretches, shares_of
from ema_cli.runs.stored import StoredRun
from ema_cli.runs.stored_file import StoredAverage

_MAX_STORED = 1000
_GRID = 8  # half-lives in a decade

TimeRange = tuple[Time, Time]


def make_stored_plan(stored: StoredRun, recipe: Recipe, *, allow_approximate: bool) -> Plan:
    """Return the weights of stored averages whose profile is nearest to that of the recipe.

    Raises:
        RunError: where it differs by more than 5 % of its size, unless `allow_approximate`; for a unit or an interval
            that the averages were not made with.
        UsageError: for a start, a last or a bias correction, which the training has settled.
    """
    _check_recipe(recipe, stored)
    law = _live_law(recipe, stored)
    averages = _thin_out(_up_to_stop(stored, recipe.stop))
    moments = _moments(stored, averages)
    number_of = {moment.updates: number for number, moment in enumerate(moments)}
    grid = _half_life_grid(averages, stored.unit)
    profiles = Profiles(
        moments,
        [Stored(average.law, number_of[average.updates]) for average in averages],
        [law, *grid],
        measure_rounding(averages, moments, [law, *grid]),
    )
    nearest = profiles.solve(law)
    errors = [profiles.error(half_life) for half_life in grid]
    reach = {within: _ranges_within(within, grid, errors) for within in (NEAR, NEAR_ENOUGH)}
    if nearest.error > NEAR_ENOUGH and not allow_approximate:
        raise _out_of_reach(stored, law, nearest, reach[NEAR_ENOUGH])
    stretches = cut_in_stretches(moments)
    ends = [end for _, end in stretches]
    approximation = Approximation(
        nearest.error,
        min(nearest.error, profiles.error(law)),
        reach,
        stretches,
        shares_of(law, len(moments) - 1, ends, moments),
        combined_shares(profiles, nearest, ends),
        nearest.rounding,
    )
    recipe = replace(recipe, update_interval=stored.interval or EVERY)
    return Plan(stored.run, recipe, _entries(averages, nearest), (), approximation=approximation)


def judge_stored(stored: StoredRun, recipe: Recipe, weights: Mapping[str, float]) -> Iterator[float]:
    """Yield how far stored averages with given weights are off from the average of a recipe, by their own headers.

    That is the average at the newest of them; or, in turn, at what was stored later and given no weight.

    Args:
        stored: the averages that are there.
        recipe: what was asked for.
        weights: that of each by the name of its file; those of others are 0.

    Raises:
        RunError: where one of them cannot have entered by the recipe.
        UsageError: for a recipe that is none for stored averages.
    """
    _check_recipe(recipe, stored)
    law = _live_law(recipe, stored)
    until_stop = _up_to_stop(stored, recipe.stop)
    late = sorted(weights.keys() - {average.checkpoint.name for average in until_stop})
    if late:
        raise RunError(f"'{late[0]}' was stored after {option('stop', str(recipe.stop))}", subject=stored.root)
    newest = max((average.updates for average in until_stop if average.checkpoint.name in weights), default=0)
    for last in sorted({newest, *(average.updates for average in until_stop if average.updates > newest)}):
        averages = [average for average in until_stop if average.updates <= last]
        kept = {average.checkpoint.name for average in _thin_out(averages)} | weights.keys()
        yield _judge(stored, law, [average for average in averages if average.checkpoint.name in kept], weights)


def _judge(stored: StoredRun, law: LiveLaw, averages: Sequence[StoredAverage], weights: Mapping[str, float]) -> float:
    """Return how far averages with given weights are off from that of a law at the newest of them."""
    moments = _moments(stored, averages)
    number_of = {moment.updates: number for number, moment in enumerate(moments)}
    profiles = Profiles(
        moments,
        [Stored(average.law, number_of[average.updates]) for average in averages],
        [law],
        measure_rounding(averages, moments, [law]),
    )
    vector = np.array([weights.get(average.checkpoint.name, 0.0) for average in averages])
    return profiles.judge(law, vector).error


def _check_recipe(recipe: Recipe, stored: StoredRun) -> None:
    """Check that the recipe leaves alone what the training settled: its beginning and its update events."""
    for name, value in (("start", recipe.start), ("last", recipe.last)):
        if value is not None:
            raise UsageError(
                "stored averages begin where the training began them",
                option=name,
                hint=f"{option('stop')} says where to end",
            )
    if recipe.bias_correction:
        raise UsageError("stored averages begin with the first copy", option="bias_correction", hint="leave it out")
    if recipe.unit not in (None, stored.unit):
        raise RunError(
            f"the averages count in {stored.unit.plural}, and {option('half_life')} does not",
            subject=stored.root,
            hint=f"as {option('half_life', f'400{stored.unit}')}",
        )
    if recipe.update_interval is not None and recipe.interval != stored.interval:
        raise RunError(
            f"the averages were updated every {stored.interval or 'update'}, which {option('update_interval')} "
            "cannot change afterwards",
            subject=stored.root,
            hint="leave it out",
        )


def _live_law(recipe: Recipe, stored: StoredRun) -> LiveLaw:
    if not isinstance(recipe.law, LiveLaw):
        asked = recipe.law.to_dict()
        name = next(name for name in ("extrapolate", "coefficients", "profile") if name in asked)
        value = None if name == "coefficients" else asked[name]
        raise UsageError(f"{option(name, value)}: is for raw checkpoints", hint=f"leave out {option('from', 'stored')}")
    if isinstance(recipe.law, RelativeHalfLife):
        return recipe.law.begun_at(stored.averages[0].schedule.start)
    return recipe.law


def _out_of_reach(stored: StoredRun, law: LiveLaw, nearest: Synthesis, reached: Sequence[TimeRange]) -> RunError:
    rounded = f", {nearest.rounding:.1%} of it by rounding" if (nearest.rounding or 0) > NEAR else ""
    ranges = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in reached) or "none"
    return RunError(
        f"{law.name} is out of reach: the nearest that the stored averages make differs by "
        f"{nearest.error:.1%}{rounded}; within {NEAR_ENOUGH:.0%} are {ranges}",
        subject=stored.root,
        hint=f"ask for one of these, take the nearest with {option('allow_approximate', True)}, or store next time "
        f"{_what_would_do(law)}",
    )


def _what_would_do(law: LiveLaw) -> str:
    """Return what to store to have an average of this law, and longer ones."""
    if not isinstance(law, HalfLife) or not 0 < law.half_life.value < math.inf:
        return "what is nearer: a half-life below it and one above, more often"
    value = Fraction(law.half_life.value)
    longer, often = (Time(factor * value, law.half_life.unit) for factor in (4, 2))
    return f"half-lives of {law.half_life} and {longer}, at least every {often}"


def _up_to_stop(stored: StoredRun, stop: Time | None) -> list[StoredAverage]:
    """Return the averages stored up to `stop`, and the first copy; some average is needed besides that."""
    averages = list(stored.averages)
    if stop is not None:
        for average in averages:
            if average.law is not None and average.checkpoint.clock(stop.unit) is None:
                raise RunError(
                    f"records no clock in {stop.unit.plural} for {option('stop')}", subject=average.checkpoint.path
                )
        averages = [
            average
            for average in averages
            if average.law is None or (average.checkpoint.clock(stop.unit) or 0) <= stop.value
        ]
    if not any(average.law is not None and average.updates for average in averages):
        when = f" up to {option('stop')}" if stop is not None else ""
        raise RunError(
            f"nothing is stored after the first copy{when}",
            subject=stored.root,
            hint="store averages as the training goes on",
        )
    return averages


def _thin_out(averages: list[StoredAverage]) -> list[StoredAverage]:
    """Leave out every other moment of the older half, again and again, where there are more than can be solved for."""
    while len(averages) > _MAX_STORED:
        moments = sorted({average.updates for average in averages if average.law is not None})
        half = len(moments) // 2
        left_out = set(moments[1:half:2])
        if not left_out:
            break
        averages = [average for average in averages if average.law is None or average.updates not in left_out]
    return averages


def _moments(stored: StoredRun, averages: Sequence[StoredAverage]) -> list[Moment]:
    """Return when averages were stored, the first copy first: each number of updates has one clock."""
    interval = None if stored.interval is None else Fraction(stored.interval.value)
    clocks = {0: Fraction(averages[0].began.value)}
    for average in averages:
        clock = Fraction(average.clock.value)
        known = clocks.setdefault(average.updates, clock)
        if known != clock:
            raise RunError(
                f"stored at {average.clock} after {average.updates} updates, "
                f"as was another at {Time(known, stored.unit)}",
                subject=average.checkpoint.path,
                hint="these are averages of two trainings; name the folder of one",
            )
    in_order = sorted(clocks.items())
    if any(float(after) <= float(before) for (_, before), (_, after) in pairwise(in_order)):
        raise RunError(
            "the updates of what is stored do not grow with its clocks",
            subject=stored.root,
            hint="these are averages of two trainings; name the folder of one",
        )
    return [_moment(clock, updates, interval) for updates, clock in in_order]


def _moment(clock: Fraction, updates: int, interval: Fraction | None) -> Moment:
    if interval is None:
        return Moment(float(clock), float(clock), updates)
    passed = floor(clock / interval)
    return Moment(float(clock), float(passed * interval), updates, passed)


def _half_life_grid(averages: Sequence[StoredAverage], unit: Unit) -> list[HalfLife]:
    """Return half-lives from an update to ten times the training, and an endless one, to see which are within reach."""
    began, ended = float(averages[0].began.value), float(averages[-1].clock.value)
    least, most = (ended - began) / max(average.updates for average in averages), 10 * ended
    steps = (least * 10 ** (step / _GRID) for step in range(int(_GRID * 12)))
    values = {float(f"{value:.2g}") for value in steps if value <= most}
    stored = {float(average.law.half_life.value) for average in averages if isinstance(average.law, HalfLife)}
    return [HalfLife(Time(value, unit)) for value in sorted({*values, *stored, math.inf})]


def _ranges_within(within: float, grid: Sequence[HalfLife], errors: Sequence[float]) -> list[TimeRange]:
    """Return the ranges of neighbouring half-lives whose error is not above `within`, as (from, to)."""
    ranges: list[TimeRange] = []
    in_range = False
    for law, error in zip(grid, errors, strict=True):
        if error <= within:
            first = ranges.pop()[0] if in_range else law.half_life
            ranges.append((first, law.half_life))
        in_range = error <= within
    return ranges


def _entries(averages: Sequence[StoredAverage], nearest: Synthesis) -> tuple[Entry, ...]:
    """Return the averages that have a weight."""
    entries: list[Entry] = []
    before = Fraction(averages[0].clock.value)
    for average, weight in zip(averages, nearest.weights.tolist(), strict=True):
        if weight:
            clock = Fraction(average.clock.value)
            entries.append(Entry(average.checkpoint, average.clock, clock - before, weight))
            before = clock
    return tuple(entries)
