"""What `--start` and `--stop` leave out of what was passed over: it needs neither an option nor a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from ema_cli.formats.trainers.names import name_clocks
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Unit
from ema_cli.runs.name_clock import name_clocks_by
from ema_cli.runs.run import Run


def drop_outside(run: Run, recipe: Recipe) -> Run:
    """Return a run without the damage and the warnings of paths that the recipe leaves out by their names."""
    if recipe.start is None and recipe.stop is None:
        return run
    outside = {
        passed.name: bound
        for passed in run.passed_over
        if passed.warn and (bound := _bound_against(_name_clocks(run, passed.name), recipe)) is not None
    }
    if not outside:
        return run
    passed_over = [
        replace(passed, reason=outside[passed.name], warn=False) if passed.name in outside else passed
        for passed in run.passed_over
    ]
    damaged = tuple(damaged for damaged in run.damaged if damaged.name not in outside)
    return replace(run, passed_over=tuple(passed_over), damaged=damaged)


def _name_clocks(run: Run, name: str) -> dict[Unit, Fraction]:
    """Return the clocks in the name of a path that was not read."""
    clocks = {unit: clock.value for unit, clock in name_clocks(name).clocks.items()}
    if run.options.name_clock is not None:
        clocks |= name_clocks_by(run.options.name_clock, [checkpoint.name for checkpoint in run.checkpoints])(name)
    return clocks


def _bound_against(clocks: Mapping[Unit, Fraction], recipe: Recipe) -> str | None:
    """Return in words the bound that leaves out what has these clocks in its name; None if neither does."""
    start, stop = recipe.start, recipe.stop
    if start is not None and start.unit in clocks:
        may_begin_at_0 = start.unit is Unit.EPOCH  # so that one more has passed
        if clocks[start.unit] + may_begin_at_0 < start.value:
            return f"before --start {start}"
    if stop is not None and stop.unit in clocks and clocks[stop.unit] > stop.value:
        return f"after --stop {stop}"
    return None
