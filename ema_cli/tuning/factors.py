"""Search how far to extrapolate, on a linear scale: a grid first, then around the best. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.tuning.half_lives import grid_count, next_place

LEAST_STEP = 0.01
"""Factors that differ by less than this share of their range are alike: the search ends."""

_DIGITS = 3  # of a factor that the search chooses, behind the point of the length of the range
_SIGN = "x"  # before a factor in the name of a candidate


@dataclass(frozen=True, slots=True)
class Factor:
    """How far beyond an average a candidate lies, on the line from another one."""

    value: float

    def __str__(self) -> str:
        return f"{_SIGN}{self.value!r}"


@dataclass(frozen=True, slots=True)
class Line:
    """The line on which candidates lie that extrapolate: the half-life of the average, and of the other one."""

    half_life: Time
    away_from: Time | str | None

    def recipe(self, factor: Factor, **fixed: Any) -> Recipe:
        """Return the recipe of a candidate."""
        return Recipe(half_life=self.half_life, extrapolate=factor.value, extrapolate_from=self.away_from, **fixed)


def parse_factor(name: str) -> Factor | None:
    """Return the factor in the name of a candidate; None for one that has none."""
    return Factor(float(name.removeprefix(_SIGN))) if name.startswith(_SIGN) else None


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors from `low` to `high`, of which `tries` are evaluated.

    Raises:
        UsageError: for ends that are no range, or no try.
    """

    low: float
    high: float
    tries: int

    def __post_init__(self) -> None:
        if not -1 <= self.low < self.high <= 100:
            raise UsageError(
                f"{self.low:g} to {self.high:g} is no range of factors",
                option="extrapolate",
                hint="two numbers from -1 to 100, the smaller one first: 0 1",
            )
        if self.tries < 1:
            raise UsageError(f"{self.tries} is not a number of candidates", option="tries", hint="at least 1")

    @classmethod
    def parse(cls, ends: tuple[str, str], tries: int) -> Self:
        """Read both ends.

        Raises:
            UsageError: for what is no number, and as the class.
        """
        try:
            low, high = map(float, ends)
        except ValueError as error:
            raise UsageError(
                f"'{' '.join(ends)[:60]}' are not two numbers", option="extrapolate", hint="as 0 1"
            ) from error
        return cls(low, high, tries)

    def grid(self) -> list[Factor]:
        """Return the factors to begin with, at equal distances; the ends are among them where there are two or more."""
        count = grid_count(self.tries)
        if count == 1:
            return [self._rounded((self.low + self.high) / 2)]
        step = (self.high - self.low) / (count - 1)
        inner = (self._rounded(self.low + step * number) for number in range(1, count - 1))
        return list(dict.fromkeys([Factor(self.low), *inner, Factor(self.high)]))

    def refined(self, scores: Mapping[Factor, float]) -> Factor | None:
        """Return the next factor to evaluate, None where the tries are spent or nothing is left between.

        Args:
            scores: what was evaluated; less is better, and infinite where it failed.
        """
        if len(scores) >= self.tries:
            return None
        points = {factor.value: score for factor, score in scores.items()}
        at = next_place(points, LEAST_STEP * (self.high - self.low))
        return None if at is None else self._rounded(at)

    def _rounded(self, value: float) -> Factor:
        return Factor(round(value, _DIGITS - math.floor(math.log10(self.high - self.low))))
