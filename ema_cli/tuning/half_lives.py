"""Search half-lives on a logarithmic scale: a grid first, then around the best. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.law.time import Time, Unit

LEAST_STEP = 0.05
"""Half-lives that differ by less than this share are alike: the search ends."""

TRIES = 12
"""How many half-lives of a range are evaluated at most, where nobody says it."""

_GOLDEN = (3 - math.sqrt(5)) / 2  # where golden section divides a stretch, from the better end
_GRID_SHARE = 2 / 3  # of all tries
_DIGITS = 3  # of a half-life that the search chooses


@dataclass(frozen=True, slots=True)
class Range:
    """The half-lives from `low` to `high`, of which `tries` are evaluated.

    Raises:
        UsageError: for ends that are no range, or no try.
    """

    low: Time
    high: Time
    tries: int

    def __post_init__(self) -> None:
        if self.low.unit != self.high.unit:
            raise UsageError(f"{self.low} and {self.high} have different units", option="between")
        if not 0 < self.low.value < self.high.value < math.inf:
            raise UsageError(
                f"{self.low} to {self.high} is no range of half-lives",
                option="between",
                hint="two times above 0, the shorter one first: 100ba 10000ba",
            )
        if self.tries < 1:
            raise UsageError(f"{self.tries} is not a number of half-lives", option="tries", hint="at least 1")

    @property
    def unit(self) -> Unit:
        """Return the unit of the half-lives."""
        return self.low.unit

    def grid(self) -> list[Time]:
        """Return the half-lives to begin with, at equal ratios; the ends are among them where there are two or more."""
        count = grid_count(self.tries)
        low, high = math.log(self.low.value), math.log(self.high.value)
        if count == 1:
            return [_rounded((low + high) / 2, self.unit)]
        inner = (low + (high - low) * number / (count - 1) for number in range(1, count - 1))
        times = [self.low, *(_rounded(at, self.unit) for at in inner), self.high]
        return list(dict.fromkeys(times))

    def refined(self, scores: Mapping[Time, float]) -> Time | None:
        """Return the next half-life to evaluate, None where the tries are spent or nothing is left between.

        Args:
            scores: what was evaluated; less is better, and infinite where it failed.
        """
        if len(scores) >= self.tries:
            return None
        at = next_place({math.log(time.value): score for time, score in scores.items()}, math.log1p(LEAST_STEP))
        return None if at is None else _rounded(at, self.unit)


def grid_count(tries: int) -> int:
    """Return how many of so many tries the grid takes."""
    return min(tries, max(3, math.ceil(tries * _GRID_SHARE)))


def next_place(scores: Mapping[float, float], least_step: float) -> float | None:
    """Return the place to evaluate next, None where every place near it is known.

    It is where a parabola through the best and its neighbours is least, or else, where there is none, the golden
    section of the wider side.

    Args:
        scores: by place what was evaluated; less is better, and infinite where it failed.
        least_step: what is nearer to a known place than this is known.
    """
    if not any(map(math.isfinite, scores.values())):
        return None
    points = sorted(scores.items())
    best = min(range(len(points)), key=lambda number: points[number][1])
    at = _vertex(points[best - 1 : best + 2]) if 0 < best < len(points) - 1 else None
    if at is None:
        at = _golden(points, best)
    if at is None or min(abs(at - known) for known, _ in points) < least_step:
        return None
    return at


def check_half_lives(times: list[Time]) -> None:
    """Check half-lives that the user names.

    Raises:
        UsageError: for none, one that is given twice, and different units.
    """
    if not times:
        raise UsageError(
            "which half-lives?",
            hint=f"name some, {option('half_life', '100ba')} {option('half_life', '1000ba')}, or a range: "
            f"{option('between')} 100ba 10000ba",
        )
    if len(set(times)) < len(times):
        twice = next(time for time in times if times.count(time) > 1)
        raise UsageError(f"'{twice}' is given twice", option="half_life")
    if len({time.unit for time in times}) > 1:
        raise UsageError("half-lives have different units", option="half_life", hint="give all in the same unit")


def _vertex(points: list[tuple[float, float]]) -> float | None:
    """Return where the parabola through three points is least, None where it has no least value between them."""
    (left, above_left), (middle, least), (right, above_right) = points
    falls, rises = (least - above_left) / (middle - left), (above_right - least) / (right - middle)
    curvature = (rises - falls) / (right - left)
    if not (math.isfinite(curvature) and curvature > 0):
        return None
    at = (left + middle) / 2 - falls / (2 * curvature)
    return at if left < at < right else None


def _golden(points: list[tuple[float, float]], best: int) -> float | None:
    """Return the golden section of the wider side of the best point, nearer to it; None for a single point."""
    at = points[best][0]
    sides = [points[number][0] - at for number in (best - 1, best + 1) if 0 <= number < len(points)]
    return at + _GOLDEN * max(sides, key=abs) if sides else None


def _rounded(logarithm: float, unit: Unit) -> Time:
    """Return a time with few digits; a rounded half-life is as good, and can be read."""
    return Time(Fraction(f"{math.exp(logarithm):.{_DIGITS}g}"), unit)
