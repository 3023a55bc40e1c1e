"""Which checkpoints enter the average, each with its weight: Composer's half-life law over a run's clocks.

Numbers first, tensors second: a plan needs clocks only, so it is instant. No torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor

from ema_cli.checkpoint import MIN_CLOCK, Checkpoint
from ema_cli.errors import RunError, option
from ema_cli.law.events import Events
from ema_cli.law.laws import HalfLife
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit, format_number
from ema_cli.runs.run import Run, averaged_error

_ROUNDING = 1e-9  # two checkpoints of one half each are not one that holds more


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint that enters.

    `clock` is in the plan's unit; `gap` is the training time since the checkpoint folded before it (with a
    smoothing: the updates); `weight` is its share in the average, negative for some of stored averages.
    """

    checkpoint: Checkpoint
    clock: Time
    gap: Fraction
    weight: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that does not enter, and why."""

    checkpoint: Checkpoint
    reason: str


@dataclass(frozen=True, slots=True)
class Approximation:
    """How near stored averages come to the one asked for.

    `error` is relative, over update events; `least_error` that of all stored averages, of which some that hardly matter
    are left out. `reach` gives for a relative error the half-lives (from, to) that are nearer. `asked` and `reached`
    are the shares of stretches of training time, given as clocks (from, to).
    """

    error: float
    least_error: float
    reach: Mapping[float, Sequence[tuple[Time, Time]]]
    stretches: Sequence[tuple[float, float]]
    asked: Sequence[float]
    reached: Sequence[float]


@dataclass(frozen=True, slots=True)
class Plan:
    """The checkpoints of a run that enter, oldest first, with weights that sum to 1; the others, with the reason.

    `twins`: pairs with one clock, of which the first is in the plan; their tensors must prove equal. `approximation`:
    where the entries are averages that the training stored.
    """

    run: Run
    recipe: Recipe
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    twins: tuple[tuple[Checkpoint, Checkpoint], ...] = ()
    approximation: Approximation | None = None

    @property
    def weights(self) -> list[float]:
        """Return the weight of each entry, oldest first."""
        return [entry.weight for entry in self.entries]

    @property
    def read(self) -> list[Entry]:
        """Return the entries that are read: a checkpoint whose weight is 0 is not."""
        return [entry for entry in self.entries if entry.weight != 0]

    @property
    def newest(self) -> Checkpoint:
        """Return the newest checkpoint that is read: it gives integers, dtypes, names and side files."""
        return self.read[-1].checkpoint

    @property
    def effective_count(self) -> float:
        """Return how many equally weighted checkpoints would average as well: 1 / sum of squared weights."""
        return 1 / math.fsum(weight * weight for weight in self.weights)

    @property
    def mean_age(self) -> Time:
        """Return the weighted mean of how long before the newest the checkpoints were saved; 0 below any time."""
        newest = Fraction(self.entries[-1].clock.value)
        age = math.fsum(entry.weight * float(newest - Fraction(entry.clock.value)) for entry in self.entries)
        return Time(age if abs(age) >= MIN_CLOCK else 0.0, self.entries[-1].clock.unit)

    def half_life_for(self, count: float) -> Time | None:
        """Return the smallest half-life that gives `count` effective checkpoints over the same updates.

        Rounded up to two digits. None where no half-life does, or where the plan has none.
        """
        law = self.recipe.law
        if not isinstance(law, HalfLife) or self.approximation is not None:
            return None
        every = [float(entry.gap) for entry in self.entries]
        if len(every) < 2:
            return None
        # Asked for without an interval, a half-life of a unit or more has one, and other gaps than this plan's.
        spaced = self._default_gaps() if self.recipe.update_interval is None and self.recipe.interval is None else every
        lowest = floor(math.log10(min(every[1:]))) - 1
        highest = floor(math.log10(sum(every))) + 2
        # In steps of two digits: the effective number rises with the half-life and then falls again, when the
        # first copy gains the upper hand.
        for exponent in range(lowest, highest):
            for mantissa in range(10, 100):
                candidate = Fraction(mantissa) * Fraction(10) ** (exponent - 1)
                gaps = every if candidate < 1 else spaced
                tried = HalfLife(Time(float(candidate), law.unit))
                weights = tried.weights(gaps, (), bias_correction=self.recipe.bias_correction)
                if 1 / math.fsum(weight * weight for weight in weights) >= count:
                    return Time(candidate, law.unit)
        return None

    def half_lives_to_store(self) -> list[Time]:
        """Return two half-lives of averages from which, stored while the model trains, this one could be made."""
        law = self.recipe.law
        if not isinstance(law, HalfLife) or not 0 < law.half_life.value < math.inf:
            return []
        half_life = law.half_life
        lower = Fraction(half_life.value) / 2
        if lower < 1 <= half_life.value:
            lower = Fraction(1)  # below one unit other updates would count
        return [Time(value, half_life.unit) for value in (lower, 2 * Fraction(half_life.value))]

    def _default_gaps(self) -> list[float]:
        """Return the gaps that the checkpoints of this plan would have with an interval of one unit."""
        events = sorted({floor(Fraction(entry.clock.value)) for entry in self.entries} - {0}) or [0]
        return [0.0, *(float(newer - older) for older, newer in pairwise(events))]

    @property
    def heaviest(self) -> Entry:
        """Return the entry with the largest weight."""
        return max(self.entries, key=lambda entry: entry.weight)

    def warnings(self) -> list[str]:
        """Return what a user should know before trusting the average: the sparse-checkpoint trap above all."""
        if self.approximation is not None:
            return []  # averages, each of which stands for many checkpoints
        heaviest = self.heaviest
        if heaviest.weight <= 0.5 + _ROUNDING:
            return []
        return [f"{heaviest.checkpoint.name} holds {heaviest.weight:.1%} of the average: {self._reason(heaviest)}"]

    def _reason(self, heaviest: Entry) -> str:
        """Return why one checkpoint holds more than half, and what to do."""
        if len(self.entries) < 3:
            return f"only {len(self.entries)} checkpoint{'s enter' if len(self.entries) > 1 else ' enters'}"
        words = self.recipe.law.words()
        if words.much is None:
            return f"the {words.noun} gives it that much, for the training that it stands for"
        enough = self.half_life_for(3)
        advice = f"; {enough} gives three effective checkpoints" if enough else ""
        if heaviest is self.entries[0]:
            return f"{words.much} for this run{advice}; --bias-correction removes the first checkpoint's excess"
        return f"{words.little} for checkpoints this far apart{advice}"


def make_plan(run: Run, recipe: Recipe) -> Plan:
    """Return which checkpoints of `run` enter, each with its weight, by the laws of Composer's EMA.

    Raises:
        RunError: where clocks are missing in a unit that the recipe needs, or where nothing is left to average.
    """
    if not run.checkpoints:
        raise RunError("no checkpoint to average", subject=run.root)
    unit = recipe.unit or (run.units[0] if recipe.law.over_clocks and run.units else None)
    for needed, what in (
        (recipe.unit, "the half-life" if recipe.law.unit else "the update interval"),
        (recipe.start.unit if recipe.start else None, option("start")),
        (recipe.stop.unit if recipe.stop else None, option("stop")),
    ):
        if needed is not None:
            _check_clocks(run, needed, what)
    if not run.units:
        raise RunError(
            "the checkpoints record no clock, and names alone give no order that is safe",
            subject=run.root,
            hint=f"say how far apart they are: {option('spacing', '100ba')}",
        )
    skipped: list[Skipped] = []
    checkpoints, twins = _keep_one_each(run, unit, skipped)
    checkpoints = _select(checkpoints, recipe, skipped)
    folded = _fold_events(checkpoints, recipe, unit, skipped)
    if recipe.last is not None and len(folded) > recipe.last:
        skipped += [Skipped(each, f"older than the last {recipe.last}") for each, _ in folded[: -recipe.last]]
        folded = folded[-recipe.last :]
    if not folded:
        raise RunError(
            f"no checkpoint is left to average: {skipped[0].checkpoint.name}: {skipped[0].reason}",
            subject=run.root,
            hint=f"see what each checkpoint is: ema-cli inspect {run.root}",
        )
    # The oldest becomes the first copy: what came before it is no gap of this average.
    gaps = [Fraction(0), *(gap for _, gap in folded[1:])]
    shown = unit or run.units[0]
    clocks = [_clock(checkpoint, shown) for checkpoint, _ in folded]
    entries = [
        Entry(checkpoint, Time(clock, shown), gap, weight)
        for (checkpoint, _), clock, gap, weight in zip(
            folded, clocks, gaps, recipe.law.weights(gaps, clocks, bias_correction=recipe.bias_correction), strict=True
        )
    ]
    in_plan = {entry.checkpoint for entry in entries}
    kept_twins = tuple((kept, other) for kept, other in twins if kept in in_plan)
    order = {checkpoint: number for number, checkpoint in enumerate(run.checkpoints)}
    skipped.sort(key=lambda each: order[each.checkpoint])
    return Plan(run, recipe, tuple(entries), tuple(skipped), kept_twins)


def _check_clocks(run: Run, unit: Unit, what: str) -> None:
    missing = next((each for each in run.checkpoints if unit not in each.progress.clocks), None)
    if missing is None:
        return
    if missing.averaged:
        raise averaged_error(missing)
    known = ", ".join(f"{unit.plural} ({unit})" for unit in missing.progress.clocks) or "none"
    ways = ["give " + what + " in a unit that is known"] if missing.progress.clocks else []
    other = {Unit.EPOCH: Unit.BATCH, Unit.BATCH: Unit.EPOCH}.get(unit)
    if other in missing.progress.clocks:
        ways.append(f"convert with {option('epoch_length', '1000ba')}")
    ways.append(f"say how far apart the checkpoints are with {option('spacing', f'100{unit}')}")
    raise RunError(
        f"records no clock in {unit.plural}, which {what} needs; known: {known}",
        subject=missing.path,
        hint=", or ".join(ways),
    )


def _keep_one_each(
    run: Run, unit: Unit | None, skipped: list[Skipped]
) -> tuple[list[Checkpoint], list[tuple[Checkpoint, Checkpoint]]]:
    """Keep one checkpoint of those with one clock; `average` will compare the tensors of the others with it."""
    pairs = [(group[0], other) for group in run.twins(unit) for other in group[1:]]
    dropped = {other for _, other in pairs}
    skipped += [Skipped(other, f"same clock as {kept.name}") for kept, other in pairs]
    return [each for each in run.checkpoints if each not in dropped], pairs


def _select(checkpoints: list[Checkpoint], recipe: Recipe, skipped: list[Skipped]) -> list[Checkpoint]:
    """Apply --start and --stop, both inclusive."""
    kept = []
    for each in checkpoints:
        if recipe.start is not None and _clock(each, recipe.start.unit) < recipe.start.value:
            skipped.append(Skipped(each, f"before --start {recipe.start}"))
        elif recipe.stop is not None and _clock(each, recipe.stop.unit) > recipe.stop.value:
            skipped.append(Skipped(each, f"after --stop {recipe.stop}"))
        else:
            kept.append(each)
    return kept


def _fold_events(
    checkpoints: list[Checkpoint], recipe: Recipe, unit: Unit | None, skipped: list[Skipped]
) -> list[tuple[Checkpoint, Fraction]]:
    """Return the checkpoints that are folded, each with the gap to the one folded before it.

    The gap is in units of training time with a half-life, in updates with a smoothing; `Events` says which are folded.
    """
    events = Events(None if recipe.interval is None else Fraction(recipe.interval.value))
    folded: list[tuple[Checkpoint, Fraction]] = []
    for number, each in enumerate(checkpoints, 1):
        if _is_untrained(each, unit):
            skipped.append(Skipped(each, f"its clock is still 0{unit or ''}"))
            continue
        # Where only their order counts, one unit passes from each to the next.
        gap = events.meet(Fraction(number) if unit is None else _clock(each, unit))
        if gap is not None:
            folded.append((each, recipe.law.measure(gap)))
        elif not folded:
            skipped.append(Skipped(each, f"before the first update at {format_number(events.first)}{unit}"))
        elif events.interval is None:
            skipped.append(Skipped(each, f"no time passed since {folded[-1][0].name}"))
        else:
            assert unit is not None
            assert events.previous is not None
            skipped.append(Skipped(each, f"no update event since {Time(events.previous, unit)}"))
    return folded


def _is_untrained(checkpoint: Checkpoint, unit: Unit | None) -> bool:
    """Return whether the clock is 0; where the law needs no unit, whether every clock is."""
    if unit is not None:
        return checkpoint.clock(unit) == 0
    return all(clock.value == 0 for clock in checkpoint.progress.clocks.values())


def _clock(checkpoint: Checkpoint, unit: Unit) -> Fraction:
    clock = checkpoint.clock(unit)
    assert clock is not None, "checked when the plan was begun"
    return clock
