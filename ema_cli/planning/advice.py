"""What is worth knowing of a plan before its average is trusted, and what would do better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from math import floor
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.law.exponential import HalfLife
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.entry import Entry
from ema_cli.runs.warnings import grouped

if TYPE_CHECKING:  # `inspect` folds nothing
    from ema_cli.folding.fold import Factored

_ROUNDING = 1e-9  # two checkpoints of one half each are not one that holds more
_ENOUGH = 3  # effective checkpoints


@dataclass(frozen=True)
class Advice:
    """What to say of raw checkpoints that enter an average, found when it is asked for, once.

    `entries` are empty where averages enter instead: each stands for many checkpoints.
    """

    recipe: Recipe
    entries: tuple[Entry, ...]

    @cached_property
    def heaviest(self) -> Entry | None:
        """Return the entry that holds more than half of the average, if any."""
        if any(entry.weight < 0 for entry in self.entries):
            return None  # more than all of it may be what is asked for
        heaviest = max(self.entries, key=lambda entry: entry.weight, default=None)
        return heaviest if heaviest is not None and heaviest.weight > 0.5 + _ROUNDING else None

    @cached_property
    def warnings(self) -> list[str]:
        """Return what a user should know before trusting the average: the sparse-checkpoint trap above all."""
        warnings = [] if self._beyond_first is None else [self._beyond_first]
        if self.heaviest is not None and self.recipe.last != 1:  # one is what was asked for
            holds = f"{self.heaviest.checkpoint.name} holds {self.heaviest.weight:.1%} of the average"
            warnings.append(f"{holds}: {self._reason(self.heaviest)}")
        return warnings

    @property
    def _beyond_first(self) -> str | None:
        """Return in words that the window reaches so far back that a checkpoint is missing at its beginning."""
        window = self.recipe.law.window
        if window is None or len(self.entries) < 2:  # of one alone another warning says it
            return None
        first, newest = self.entries[0], self.entries[-1]
        covered = Fraction(newest.clock.value) - Fraction(first.clock.value)
        if window.value - covered <= max((entry.gap for entry in self.entries[1:]), default=0):
            return None
        return (
            f"the window of {window} reaches beyond the first checkpoint, {first.checkpoint.name}: "
            f"only {Time(covered, window.unit)} of it are there"
        )

    @property
    def newest_is_heavy(self) -> bool:
        """Return whether the newest of several checkpoints holds more than half."""
        return len(self.entries) > 1 and self.heaviest is self.entries[-1]

    @cached_property
    def half_life_for_three(self) -> Time | None:
        """Return the smallest half-life that gives three effective checkpoints; None where none does."""
        return half_life_for(_ENOUGH, self.recipe, self.entries)

    @property
    def half_lives_to_store(self) -> list[Time]:
        """Return two half-lives of averages from which, stored while a model trains, this one could be made."""
        law = self.recipe.law
        if not isinstance(law, HalfLife) or not 0 < law.half_life.value < math.inf:
            return []
        value = Fraction(law.half_life.value)
        lower = Fraction(1) if value / 2 < 1 <= value else value / 2  # below one unit other updates would count
        return [Time(lower, law.unit), Time(2 * value, law.unit)]

    def _reason(self, heaviest: Entry) -> str:
        """Return why one checkpoint holds more than half, and what to do."""
        if len(self.entries) < _ENOUGH:
            return f"only {len(self.entries)} checkpoint{'s enter' if len(self.entries) > 1 else ' enters'}"
        words = self.recipe.law.words()
        if words.high is None:
            return f"the {words.noun} gives it that much, for the training that it stands for"
        enough = self.half_life_for_three
        better = f"; {enough} gives three effective checkpoints" if enough else ""
        if heaviest is self.entries[0]:
            better += "; --bias-correction removes the first checkpoint's excess"
            return f"the {words.noun} is {words.high} for this run{better}"
        return f"the {words.noun} is {words.low} for checkpoints this far apart{better}"


def half_life_for(count: float, recipe: Recipe, entries: Sequence[Entry]) -> Time | None:
    """Return the smallest half-life that gives `count` effective checkpoints over the same updates.

    Rounded up to two digits. None where no half-life does, or where the law has none.
    """
    law = recipe.law
    gaps = [float(entry.gap) for entry in entries]
    if not isinstance(law, HalfLife) or len(gaps) < 2:
        return None
    # Without an interval of its own, a half-life of a unit or more has one, and other gaps than these entries.
    by_default = recipe.update_interval is None and recipe.interval is None
    spaced = _gaps_of_one_unit(entries) if by_default else gaps
    lowest = floor(math.log10(min(gaps[1:]))) - 1
    highest = floor(math.log10(sum(gaps))) + 2
    # In steps of two digits: the effective number rises with the half-life and then falls again, when the first copy
    # gains the upper hand.
    for exponent in range(lowest, highest):
        for mantissa in range(10, 100):
            candidate = Fraction(mantissa) * Fraction(10) ** (exponent - 1)
            weights = HalfLife(Time(float(candidate), law.unit)).weights(
                gaps if candidate < 1 else spaced, (), bias_correction=recipe.bias_correction
            )
            if effective_count(weights) >= count:
                return Time(candidate, law.unit)
    return None


def effective_count(weights: Iterable[float]) -> float:
    """Return how many equally weighted checkpoints would average as well: 1 / sum of squared weights."""
    return 1 / math.fsum(weight * weight for weight in weights)


def twin_warnings(twins: Iterable[tuple[Checkpoint, Checkpoint]]) -> list[str]:
    """Return what a dry run leaves open: whether checkpoints with one clock have equal tensors."""
    text = "shares its clock with another checkpoint; averaging compares their tensors"
    names = dict.fromkeys(other.name for _, other in twins)
    return [f"{group}: {text}" for text, group in grouped([(text, name) for name in names])]


def non_finite_warnings(names: Sequence[str]) -> list[str]:
    """Return the warnings of tensors that hold NaN or infinity, where that is allowed."""
    return [f"'{name}' holds NaN or infinity" for name in names]


def _gaps_of_one_unit(entries: Sequence[Entry]) -> list[float]:
    """Return the gaps that these checkpoints would have with an update interval of one unit."""
    events = sorted({floor(Fraction(entry.clock.value)) for entry in entries} - {0}) or [0]
    return [0.0, *(float(newer - older) for older, newer in pairwise(events))]


def factored_note(factored: Factored) -> str:
    """Return how near A and B come to the average of an adapter's products."""
    module, error = factored.furthest
    return (
        f"A and B of rank {factored.rank} come within {factored.error:.2%} of the average of the products BA, by the "
        f"norm of the difference; furthest off is '{module}', by {error:.2%}"
    )
