"""From stored averages to a plan: the combination of them that comes nearest to what is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import floor

from ema_cli.errors import RunError, UsageError, option
from ema_cli.law.law import LiveLaw
from ema_cli.law.laws import HalfLife
from ema_cli.law.recipe import Recipe
from ema_cli.law.synthesis import WITHIN, Moment, Profiles, Stored, share_before
from ema_cli.law.time import EVERY, Time, Unit
from ema_cli.planning.plan import Approximation, Entry, Plan
from ema_cli.runs.stored import StoredAverage, StoredRun

_LEAST_BINS = 10
_MAX_STORED = 1000
_GRID = 8  # half-lives in a decade


def make_stored_plan(stored: StoredRun, recipe: Recipe, *, allow_approximate: bool) -> Plan:
    """Return the weights of stored averages whose profile is nearest to the one that `recipe` asks for.

    Raises:
        RunError: where it differs by more than 5 % of its size, unless `allow_approximate`; for a unit or an interval
            that the averages were not made with.
        UsageError: for --start and --last, which the training has settled.
    """
    law = _asked(stored, recipe)
    recipe = replace(recipe, update_interval=stored.interval or EVERY)
    averages = _stopped(stored, recipe)
    moments = _moments(stored, averages)
    at = {moment.updates: number for number, moment in enumerate(moments)}
    grid = _half_lives(averages, stored.unit)
    profiles = Profiles(moments, [Stored(each.law, at[each.updates]) for each in averages], [law, *grid])
    found = profiles.solve(law)
    errors = [profiles.error(each) for each in grid]
    reach = {within: _ranges(grid, errors, within) for within in WITHIN}
    if found.error > WITHIN[1] and not allow_approximate:
        raise RunError(
            f"{law.name} is out of reach: the nearest that the stored averages make differs by "
            f"{found.error:.1%}; within {WITHIN[1]:.0%} are {_listed(reach[WITHIN[1]])}",
            subject=stored.root,
            hint="ask for one of these, take the nearest with "
            f"{option('allow_approximate', True)}, or store next time what is nearer: "
            "a half-life below it and one above, more often",
        )
    drawn = _drawn(profiles, law, found.weights.tolist())
    entries, before = [], averages[0].clock.value
    for each, weight in zip(averages, found.weights.tolist(), strict=True):
        if weight:
            entries.append(Entry(each.checkpoint, each.clock, Fraction(each.clock.value) - Fraction(before), weight))
            before = each.clock.value
    return Plan(
        stored.run,
        recipe,
        tuple(entries),
        (),
        approximation=Approximation(found.error, profiles.error(law), reach, *drawn),
    )


def _asked(stored: StoredRun, recipe: Recipe) -> LiveLaw:
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
    interval = recipe.interval if recipe.update_interval is not None else stored.interval
    if interval != stored.interval:
        raise RunError(
            f"the averages were updated every {stored.interval or 'update'}, which {option('update_interval')} "
            "cannot change afterwards",
            subject=stored.root,
            hint="leave it out",
        )
    if not isinstance(recipe.law, LiveLaw):
        raise UsageError(
            f"{option('profile', recipe.law.name)}: is for raw checkpoints",
            hint=f"leave out {option('from', 'stored')}",
        )
    return recipe.law


def _stopped(stored: StoredRun, recipe: Recipe) -> list[StoredAverage]:
    """Return what was stored up to --stop; some average is needed, the first copy alone is none."""
    averages = list(stored.averages)
    if recipe.stop is not None:
        for each in averages:
            if each.law is not None and each.checkpoint.clock(recipe.stop.unit) is None:
                raise RunError(
                    f"records no clock in {recipe.stop.unit.plural} for {option('stop')}", subject=each.checkpoint.path
                )
        stop = recipe.stop.value
        averages = [e for e in averages if e.law is None or (e.checkpoint.clock(recipe.stop.unit) or 0) <= stop]
    if not any(each.law is not None and each.updates for each in averages):
        when = " up to --stop" if recipe.stop is not None else ""
        raise RunError(
            f"nothing is stored after the first copy{when}",
            subject=stored.root,
            hint="store averages as the training goes on",
        )
    return _thinned(averages)


def _thinned(averages: list[StoredAverage]) -> list[StoredAverage]:
    """Leave out every other moment of the older half, again and again, where there are more than can be solved for."""
    while len(averages) > _MAX_STORED:
        moments = sorted({each.updates for each in averages if each.law is not None})
        half = len(moments) // 2
        left_out = set(moments[1:half:2])
        if not left_out:
            break
        averages = [each for each in averages if each.law is None or each.updates not in left_out]
    return averages


def _moments(stored: StoredRun, averages: Sequence[StoredAverage]) -> list[Moment]:
    interval = None if stored.interval is None else Fraction(stored.interval.value)

    def due(clock: Fraction) -> Fraction:
        return clock if interval is None else floor(clock / interval) * interval

    began = Fraction(averages[0].began.value)
    found = {0: (began, due(began))}
    for each in averages:
        clock = Fraction(each.clock.value)
        known = found.setdefault(each.updates, (clock, due(clock)))
        if known[0] != clock:
            raise RunError(
                f"stored at {each.clock} after {each.updates} updates, as was another at {Time(known[0], stored.unit)}",
                subject=each.checkpoint.path,
                hint="these are averages of two trainings; name the folder of one",
            )
    moments = [
        Moment(float(clock), float(at), updates, None if interval is None else floor(clock / interval))
        for updates, (clock, at) in sorted(found.items())
    ]
    if any(after.clock <= before.clock for before, after in pairwise(moments)):
        raise RunError(
            "the updates of what is stored do not grow with its clocks",
            subject=stored.root,
            hint="these are averages of two trainings; name the folder of one",
        )
    return moments


def _half_lives(averages: Sequence[StoredAverage], unit: Unit) -> list[HalfLife]:
    """Return half-lives from an update to ten times the training, and an endless one, to see which are within reach."""
    began, ended = float(averages[0].began.value), float(averages[-1].clock.value)
    least, most = (ended - began) / max(each.updates for each in averages), 10 * ended
    values = dict.fromkeys(
        float(f"{least * 10 ** (step / _GRID):.2g}")
        for step in range(int(_GRID * 12))
        if least * 10 ** (step / _GRID) <= most
    )
    stored = [each.law.half_life.value for each in averages if isinstance(each.law, HalfLife)]
    return [HalfLife(Time(value, unit)) for value in sorted({*values, *map(float, stored), math.inf})]


def _ranges(grid: Sequence[HalfLife], errors: Sequence[float], within: float) -> list[tuple[Time, Time]]:
    """Return the half-lives with no larger error, from and to."""
    ranges: list[tuple[Time, Time]] = []
    previous = False
    for law, error in zip(grid, errors, strict=True):
        time = law.half_life
        if error <= within:
            ranges = [*ranges[:-1], (ranges[-1][0], time)] if previous else [*ranges, (time, time)]
        previous = error <= within
    return ranges


def _listed(ranges: Sequence[tuple[Time, Time]]) -> str:
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges) or "none"


def _drawn(
    profiles: Profiles, law: LiveLaw, weights: Sequence[float]
) -> tuple[list[tuple[float, float]], list[float], list[float]]:
    """Return stretches of training time, and in each the share that was asked for and the one that is reached."""

    moments = profiles.moments
    last, end = len(moments) - 1, moments[-1].clock
    step = _round_step((end - moments[0].clock) / _LEAST_BINS)
    before = math.floor(moments[0].clock / step)  # stretches in which there was no average
    edges = [step * number for number in range(before + 1, math.ceil(end / step - 1e-9))] + [end]

    def shares(each: LiveLaw | None, moment: int) -> Iterator[float]:
        before = 0.0
        for edge in edges:
            until = share_before(each, edge, moments, moment)
            yield until - before
            before = until

    asked = list(shares(law, last))
    reached = [0.0] * len(edges)
    for stored, weight in zip(profiles.stored, weights, strict=True):
        if weight:
            reached = [
                sum(pair) for pair in zip(reached, (weight * s for s in shares(stored.law, stored.moment)), strict=True)
            ]
    return list(zip([step * before, *edges[:-1]], edges, strict=True)), asked, reached


def _round_step(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... that is not above `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= most * (1 + 1e-9))
