"""From a run and a recipe to a plan: the checkpoints that enter the average, each with its weight.

Numbers first, tensors second: a plan needs clocks only, so it is instant. No torch, no numpy.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property

from ema_cli.checkpoint import MIN_CLOCK, Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import NothingLeft, RunError, UsageError, option
from ema_cli.kinds import check_instance
from ema_cli.law.bema import Bema
from ema_cli.law.coefficients import Coefficients
from ema_cli.law.events import Events
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit, format_number
from ema_cli.planning.advice import Advice, effective_count
from ema_cli.planning.bounds import drop_outside
from ema_cli.planning.clock_checks import check_order, check_units, count_names, unit_needed_by
from ema_cli.planning.coefficients import entries_of
from ema_cli.planning.entry import Entry, Skipped
from ema_cli.runs.run import Run
from ema_cli.text import plural


@dataclass(frozen=True, slots=True)
class Approximation:
    """How near stored averages come to the average of the recipe.

    Attributes:
        error: the relative error: that of the profile over update events, and that of the rounding as far as known.
        least_error: that of all stored averages; those that hardly matter are left out of the plan.
        reach: for a relative error, the ranges of half-lives (from, to) that are nearer.
        stretches: stretches of training time, as clocks (from, to).
        asked: the share that each stretch has in the average of the recipe.
        reached: the share that it has in the plan's average.
        rounding: the part of `error` that comes from the rounding of what is stored, against what averaging changes;
            None where it is not known, as earlier versions stored no norms.
    """

    error: float
    least_error: float
    reach: Mapping[float, Sequence[tuple[Time, Time]]]
    stretches: Sequence[tuple[float, float]]
    asked: Sequence[float]
    reached: Sequence[float]
    rounding: float | None = None


@dataclass(frozen=True)
class Plan:
    """The checkpoints of a run that enter, oldest first, with weights that sum to 1, unless given ones need not; the
    others, with the reason.

    `twins` are pairs with one clock, of which the first is in the plan; their tensors must prove equal.
    `approximation` is there where the entries are averages that the training stored.
    """

    run: Run
    recipe: Recipe
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    twins: tuple[tuple[Checkpoint, Checkpoint], ...] = ()
    approximation: Approximation | None = None

    def __repr__(self) -> str:
        """Return the plan in one line: the law, and how many checkpoints enter."""
        of = len(self.entries) + len(self.skipped)
        return (
            f"<Plan {self.recipe.law.name}: {len(self.entries)} of {plural(of, 'checkpoint')}, "
            f"{self.effective_count:.4g} effective>"
        )

    @cached_property
    def weights(self) -> list[float]:
        """Return the weight of each entry, oldest first."""
        return [entry.weight for entry in self.entries]

    @cached_property
    def read(self) -> list[Entry]:
        """Return the entries that are read: a checkpoint whose weight is 0 is not."""
        return [entry for entry in self.entries if entry.weight != 0]

    @property
    def newest(self) -> Checkpoint:
        """Return the newest checkpoint that is read: it gives integers, dtypes, names and side files."""
        return self.read[-1].checkpoint

    @property
    def effective_count(self) -> float:
        """Return how many equally weighted checkpoints would average as well."""
        return effective_count(self.weights)

    @cached_property
    def mean_age(self) -> Time:
        """Return the weighted mean of how long before the newest the checkpoints were saved; 0 below any time."""
        newest = Fraction(self.entries[-1].clock.value)
        ages = [entry.weight * float(newest - Fraction(entry.clock.value)) for entry in self.entries]
        age, rounding = math.fsum(ages), 1e-15 * math.fsum(map(abs, ages))  # where weights below 0 cancel others
        return Time(age if abs(age) >= MIN_CLOCK and abs(age) > rounding else 0.0, self.entries[-1].clock.unit)

    @property
    def between_updates(self) -> int:
        """Return how many checkpoints do not enter only because an update is not at each."""
        return sum(skip.between_updates for skip in self.skipped)

    @cached_property
    def advice(self) -> Advice:
        """Return what is worth knowing before the average is trusted."""
        is_asked_for = self.approximation is not None or isinstance(self.recipe.law, Coefficients)
        return Advice(self.recipe, () if is_asked_for else self.entries)


def make_plan(run: Run, recipe: Recipe) -> Plan:
    """Return which checkpoints of `run` enter, each with its weight, by the laws of Composer's EMA.

    Raises:
        RunError: where clocks are missing in a unit that the recipe needs, or where nothing is left to average.
    """
    check_instance(run, Run, "what open_run returns")
    check_instance(recipe, Recipe, "a recipe: Recipe(half_life='50ba')")
    if not run.checkpoints:
        raise RunError("no checkpoint to average", subject=run.root)
    if isinstance(recipe.law, Bema) != (run.base is not None):
        raise UsageError(
            f"{option('profile', Bema.profile)} goes with {option('base')}, the model that the training began with",
            hint=f"as {option('profile', Bema.profile)} {option('base', 'MODEL')}",
        )
    run = drop_outside(run, recipe)
    if isinstance(recipe.law, Coefficients):
        check_units(run, recipe)
        entries, skipped = entries_of(run, recipe.law)
        return Plan(replace(run, damaged=()), recipe, entries, tuple(skipped))
    if not run.units and recipe.needs_no_order(len(run.checkpoints)):
        run = count_names(run)
    check_units(run, recipe)
    unit = recipe.unit or (run.units[0] if recipe.law.over_clocks else None)
    skipped = []
    checkpoints = _select(run, recipe, skipped)
    if unit is not None:
        check_order(run, checkpoints, unit, unit_needed_by(recipe))
    checkpoints, twins = _keep_one_each(run, checkpoints, unit, skipped)
    folded = _fold_events(checkpoints, recipe, unit, skipped)
    folded = _within_window(folded, recipe.law.window, skipped)
    if recipe.last is not None and len(folded) > recipe.last:
        older = folded[: -recipe.last]
        skipped += [Skipped(checkpoint, f"older than the last {recipe.last}") for checkpoint, _ in older]
        folded = folded[-recipe.last :]
    if not folded:
        raise _nothing_left(run, recipe, skipped)
    if run.base is not None and unit is not None:
        begin = _clock(run.base, unit)
        folded = [(run.base, Fraction(0)), (folded[0][0], _clock(folded[0][0], unit) - begin), *folded[1:]]
    entries = _weighted(folded, recipe, unit or run.units[0])
    entered = {entry.checkpoint for entry in entries}
    order = {checkpoint: number for number, checkpoint in enumerate(run.checkpoints)}
    skipped.sort(key=lambda skip: order[skip.checkpoint])
    return Plan(run, recipe, entries, tuple(skipped), tuple(pair for pair in twins if pair[0] in entered))


def _nothing_left(run: Run, recipe: Recipe, skipped: Sequence[Skipped]) -> NothingLeft:
    """Return the error for a recipe by which no checkpoint enters."""
    start, stop = recipe.start, recipe.stop
    if start is not None and stop is not None and start.unit is stop.unit and start.value > stop.value:
        fact = f"no checkpoint is left to average: {option('start', str(start))} is after {option('stop', str(stop))}"
        return NothingLeft(fact, subject=run.root, hint="give an earlier start, or a later stop")
    between = [skip for skip in skipped if skip.between_updates]
    shown = between[-1] if between else skipped[0]
    fact = f"no checkpoint is left to average: {shown.checkpoint.name}: {shown.reason}"
    if not between or recipe.interval is None:
        return NothingLeft(
            fact, subject=run.root, hint=f"see what each checkpoint is: ema-cli inspect {shlex.quote(str(run.root))}"
        )
    unit = recipe.interval.unit
    return NothingLeft(
        f"{fact}, and it is at {Time(_clock(shown.checkpoint, unit), unit)}",
        subject=run.root,
        hint=f"fold each checkpoint, whatever time passed: {option('update_interval', 'every')}",
    )


def _select(run: Run, recipe: Recipe, skipped: list[Skipped]) -> list[Checkpoint]:
    """Apply `start`, then `stop`, both inclusive."""
    kept = list(run.checkpoints)
    if run.base is not None:
        unit, kept = recipe.unit or run.units[0], kept[1:]
        begin = _clock(run.base, unit)
        skipped += [Skipped(each, f"not after {run.base.name}") for each in kept if 0 < _clock(each, unit) <= begin]
        kept = [each for each in kept if begin == 0 or _clock(each, unit) > begin]
    if recipe.start is not None:
        check_order(run, kept, recipe.start.unit, option("start"))
        earlier = [checkpoint for checkpoint in kept if _clock(checkpoint, recipe.start.unit) < recipe.start.value]
        skipped += [Skipped(checkpoint, f"before --start {recipe.start}") for checkpoint in earlier]
        kept = kept[len(earlier) :]
    if recipe.stop is not None:
        check_order(run, kept, recipe.stop.unit, option("stop"))
        later = [checkpoint for checkpoint in kept if _clock(checkpoint, recipe.stop.unit) > recipe.stop.value]
        skipped += [Skipped(checkpoint, f"after --stop {recipe.stop}") for checkpoint in later]
        kept = kept[: len(kept) - len(later)]
    return kept


def _within_window(
    folded: list[tuple[Checkpoint, Fraction]], window: Time | None, skipped: list[Skipped]
) -> list[tuple[Checkpoint, Fraction]]:
    """Return those that lie in the law's window before the newest, its beginning included."""
    if window is None or not folded:
        return folded
    begin = _clock(folded[-1][0], window.unit) - window.value
    earlier = [checkpoint for checkpoint, _ in folded if _clock(checkpoint, window.unit) < begin]
    skipped += [Skipped(checkpoint, f"before the window of {window}") for checkpoint in earlier]
    return folded[len(earlier) :]


def _keep_one_each(
    run: Run, checkpoints: Sequence[Checkpoint], unit: Unit | None, skipped: list[Skipped]
) -> tuple[list[Checkpoint], list[tuple[Checkpoint, Checkpoint]]]:
    """Keep one checkpoint of those with one clock; `average` will compare the tensors of the others with it."""
    pairs = [(group[0], other) for group in run.twins(unit, checkpoints) for other in group[1:]]
    dropped = {other for _, other in pairs}
    skipped += [Skipped(other, f"same clock as {kept.name}") for kept, other in pairs]
    return [checkpoint for checkpoint in checkpoints if checkpoint not in dropped], pairs


def _fold_events(
    checkpoints: Sequence[Checkpoint], recipe: Recipe, unit: Unit | None, skipped: list[Skipped]
) -> list[tuple[Checkpoint, Fraction]]:
    """Return the checkpoints that are folded, each with the gap to the one folded before it as the law measures it.

    With an interval of 5ba, checkpoints at 1, 3, 5 and 17ba are folded at 1 (the first copy), 5 and 17: the gaps are
    0, 5 and 10ba, since the events at 10 and 15ba are due at 17.
    """
    interval = recipe.interval
    events = Events(None if interval is None else Fraction(interval.value))
    folded: list[tuple[Checkpoint, Fraction]] = []
    for number, checkpoint in enumerate(checkpoints, 1):
        if _is_untrained(checkpoint, unit):
            skipped.append(Skipped(checkpoint, f"its clock is still 0{unit or ''}"))
            continue
        before = events.previous
        # Where only their order counts, one unit passes from each to the next.
        gap = events.meet(Fraction(number) if unit is None else _clock(checkpoint, unit))
        if gap is not None:
            folded.append((checkpoint, recipe.law.measure(gap)))
        elif before is None:
            reason = f"before the first update at {format_number(events.first)}{unit}"
            skipped.append(Skipped(checkpoint, reason, between_updates=True))
        elif interval is None:
            skipped.append(Skipped(checkpoint, f"no time passed since {folded[-1][0].name}"))
        else:
            reason = f"no update event since {Time(before, interval.unit)}"
            skipped.append(Skipped(checkpoint, reason, between_updates=True))
    return folded


def _weighted(folded: Sequence[tuple[Checkpoint, Fraction]], recipe: Recipe, unit: Unit) -> tuple[Entry, ...]:
    """Return the checkpoints with their weights; their clocks are shown in `unit`."""
    # The oldest becomes the first copy: what came before it is no gap of this average.
    gaps = [Fraction(0), *(gap for _, gap in folded[1:])]
    clocks = [_clock(checkpoint, unit) for checkpoint, _ in folded]
    weights = recipe.law.weights(gaps, clocks, bias_correction=recipe.bias_correction)
    return tuple(
        Entry(checkpoint, Time(clock, unit), gap, weight)
        for (checkpoint, _), clock, gap, weight in zip(folded, clocks, gaps, weights, strict=True)
    )


def _is_untrained(checkpoint: Checkpoint, unit: Unit | None) -> bool:
    """Return whether the clock is 0; where the law needs no unit, whether every clock is."""
    if unit is not None:
        return checkpoint.clock(unit) == 0
    return all(clock.value == 0 for clock in checkpoint.progress.clocks.values())


def _clock(checkpoint: Checkpoint, unit: Unit) -> Fraction:
    """Return a clock that is known to be there."""
    return checkpoint.progress.clocks[unit].value
