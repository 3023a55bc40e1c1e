"""A series: an average at each of several clocks, each of the run up to there. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from math import ceil, floor, inf

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import RunError, UsageError, option
from ema_cli.kinds import as_list, check_instance
from ema_cli.law.coefficients import Coefficients
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit, as_time
from ema_cli.planning.clock_checks import check_clocks, check_units
from ema_cli.planning.entry import Entry, Skipped
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import Run

_FINEST = 10**9  # parts of a unit: a clock that never ends in decimals is rounded up to that


@dataclass(frozen=True, slots=True)
class Series:
    """At which clocks there is an average.

    Attributes:
        every: at the first checkpoint at or after each multiple of this, and at the newest; None: at each checkpoint.

    Raises:
        UsageError: for a distance that is none.
    """

    every: Time | None = None

    def __post_init__(self) -> None:
        if self.every is not None and not (0 < self.every.value < inf):
            raise UsageError(
                f"'{self.every}' is no distance between averages", option="series_every", hint="as 1000ba or 1e9tok"
            )

    def ends(self, run: Run) -> list[Checkpoint]:
        """Return the checkpoints of a run at which there is an average, oldest first.

        Raises:
            RunError: where checkpoints have no clock in the unit of `every`, or none at all.
        """
        if self.every is None:
            return list(run.checkpoints)
        check_clocks(run, self.every, option("series_every"))
        passed = [
            floor((checkpoint.clock(self.every.unit) or Fraction(0)) / Fraction(self.every.value))
            for checkpoint in run.checkpoints
        ]
        ends = [
            checkpoint
            for checkpoint, before, now in zip(run.checkpoints, [0, *passed], passed, strict=False)
            if now > before
        ]
        return ends if run.checkpoints[-1] in ends[-1:] else [*ends, run.checkpoints[-1]]


def make_series(run: Run, recipes: Recipe | Sequence[Recipe], *, every: Time | str | None = None) -> list[Plan]:
    """Return a plan for each clock of a run and each recipe: that of the run up to there, as with `stop`.

    The earliest clocks come first, and at each clock all recipes. Where nothing entered since the clock before, as
    between two update events, there is no plan.

        average(make_series(open_run("ckpts"), Recipe(half_life="500ba")), "series/ema-{half_life}-at-{clock}")

    Args:
        run: the checkpoints.
        recipes: one recipe, or several; their own `start`, `stop` and `last` hold, too.
        every: at the first checkpoint at or after each multiple of this, and at the newest; without it at each one.

    Raises:
        UsageError: for a distance that is none, and where there is no recipe.
        RunError: as `make_plan`, and where a series would be a single average.
    """
    recipes = as_list(recipes)
    check_instance(run, Run, "what open_run returns")
    for recipe in recipes:
        check_instance(recipe, Recipe, "a recipe: Recipe(half_life='50ba')")
    series = Series(None if every is None else as_time(every, "series_every"))
    return plan_series(run, recipes, series)


def plan_series(
    run: Run, recipes: Sequence[Recipe], series: Series, planner: Callable[[Recipe], Plan] | None = None
) -> list[Plan]:
    """Return the plans of a series; see `make_series`.

    Args:
        run: the checkpoints, or averages that a training stored.
        recipes: each has its averages.
        series: at which clocks.
        planner: makes the plan of a recipe; where it is not given, of raw checkpoints.
    """
    plan_of = partial(make_plan, run) if planner is None else planner
    if not recipes:
        raise UsageError(f"which law? a series needs one: add {option('half_life', '50ba')}")
    if any(isinstance(recipe.law, Coefficients) for recipe in recipes):
        raise UsageError(
            "an average at each clock has weights by a law",
            option="coefficients",
            hint=f"leave out {option('series', True)}",
        )
    check_units(run, recipes[0])
    whole = [plan_of(recipe) for recipe in recipes]  # whatever else is wrong with clocks shows here
    ends, shared = series.ends(run), _Shared()
    made = [list(_plans_of(plan, ends, shared, plan_of)) for plan in whole]
    order = {checkpoint: number for number, checkpoint in enumerate(run.checkpoints)}
    plans = sorted((plan for each in made for plan in each), key=lambda plan: order[_end(plan)])
    if len(plans) < 2:  # which would go where the target says, and not into a folder
        hint = f"leave out {option('series', True)}"
        if series.every is not None:
            hint = f"a shorter {option('series_every')} than {series.every}, or none: {option('series', True)}"
        raise RunError("a series of it is a single average", subject=run.root, hint=hint)
    # What is damaged behind the last that can be read would be after its `stop`, and yet belongs to the run.
    plans[-1] = replace(plans[-1], run=replace(plans[-1].run, damaged=whole[-1].run.damaged))
    return plans


def is_series(plans: Sequence[Plan]) -> bool:
    """Return whether plans are those of a series: they end at different clocks."""
    return any(plan.recipe.stop != plans[0].recipe.stop and _end(plan) is not _end(plans[0]) for plan in plans)


def at_the_end(plans: Sequence[Plan]) -> list[Plan]:
    """Return those of a series that end last, of others all."""
    return [plan for plan in plans if _end(plan) is _end(plans[-1])] if is_series(plans) else list(plans)


def _end(plan: Plan) -> Checkpoint:
    return plan.entries[-1].checkpoint


def _plans_of(
    whole: Plan, ends: Sequence[Checkpoint], shared: _Shared, plan_of: Callable[[Recipe], Plan]
) -> Iterator[Plan]:
    """Yield the plans of one recipe; `whole` is that of the whole run."""
    recipe, unit = whole.recipe, whole.entries[-1].clock.unit
    newest = None
    for end in ends:
        clock = end.progress.clocks[unit].value if unit in end.progress.clocks else None
        if clock is None or _is_later(end, recipe.stop):
            continue
        try:
            plan = plan_of(replace(recipe, stop=_stop(clock, unit)))
        except RunError:
            continue  # nothing has entered yet
        if _end(plan) is not newest:
            newest = _end(plan)
            yield shared.plan(plan)


def _stop(clock: Fraction, unit: Unit) -> Time:
    """Return the time at which a run is stopped to end with a checkpoint; a manifest can write it down in full."""
    exact = Time(clock, unit)
    return exact if Time.parse(str(exact)) == exact else Time(Fraction(ceil(clock * _FINEST), _FINEST), unit)


def _is_later(checkpoint: Checkpoint, stop: Time | None) -> bool:
    clock = None if stop is None else checkpoint.clock(stop.unit)
    return clock is not None and stop is not None and clock > stop.value


class _Shared:
    """The numbers of plans that have most of them in common: of equal ones, one is kept."""

    def __init__(self) -> None:
        self._clocks: dict[Time, Time] = {}
        self._gaps: dict[Fraction, Fraction] = {}
        self._skipped: dict[tuple[Checkpoint, str], Skipped] = {}

    def plan(self, plan: Plan) -> Plan:
        """Return the plan, made of what is kept."""
        entries = [
            Entry(
                entry.checkpoint,
                self._clocks.setdefault(entry.clock, entry.clock),
                self._gaps.setdefault(entry.gap, entry.gap),
                entry.weight,
            )
            for entry in plan.entries
        ]
        skipped = [self._skipped.setdefault((skip.checkpoint, skip.reason), skip) for skip in plan.skipped]
        return replace(plan, entries=tuple(entries), skipped=tuple(skipped))
