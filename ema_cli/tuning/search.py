"""Search a range: a grid first, then around the best. Numbers only.

Half-lives and windows are searched on a logarithmic scale, factors on a linear one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.kinds import as_count
from ema_cli.tuning.settings import Setting

LEAST_STEP = 0.05
"""Half-lives, or windows, that differ by less than this share are alike: the search ends."""

LEAST_SHARE = 0.01
"""Factors that differ by less than this share of their range are alike, too."""

TRIES = 12
"""How many settings in a range are evaluated at most, where nobody says it."""

_GOLDEN = (3 - math.sqrt(5)) / 2  # where golden section divides a stretch, from the better end
_GRID_SHARE = 2 / 3  # of all tries
_DIGITS = 3  # of what the search chooses; it is as good, and can be read


@dataclass(frozen=True, slots=True)
class Range:
    """The settings from `low` to `high`, of which `tries` are evaluated.

    Raises:
        UsageError: for ends that are no range, or no try.
    """

    low: Setting
    high: Setting
    tries: int = TRIES

    def __post_init__(self) -> None:
        option = "between" if self.low.unit else "extrapolate"
        if self.low.unit != self.high.unit:
            raise UsageError(
                f"{self.low.text} and {self.high.text} have different units",
                option=option,
                hint="give both in the same unit",
            )
        low, high = self.low.number, self.high.number
        if not (0 < low < high < math.inf if self.low.unit else -1 <= low < high <= 100):
            above = f"100{self.low.unit} 10000{self.low.unit}"
            raise UsageError(
                f"{self.low.text} to {self.high.text} is no range of {self.low.nouns}",
                option=option,
                hint=_hint(self.low.unit, above),
            )
        as_count(self.tries, "tries", "candidates")

    def grid(self) -> list[Setting]:
        """Return the settings to begin with, at equal distances; both ends are among them, unless there is one."""
        count = min(self.tries, max(3, math.ceil(self.tries * _GRID_SHARE)))
        low, high = self._place(self.low), self._place(self.high)
        if count == 1:
            return [self._at((low + high) / 2)]
        inner = (self._at(low + (high - low) * number / (count - 1)) for number in range(1, count - 1))
        return list(dict.fromkeys([self.low, *inner, self.high]))

    def refined(self, scores: Mapping[Setting, float]) -> Setting | None:
        """Return the next setting to evaluate, None where the tries are spent or nothing is left between.

        Args:
            scores: what was evaluated; less is better, and infinite where it failed.
        """
        if len(scores) >= self.tries:
            return None
        least_step = (
            math.log1p(LEAST_STEP) if self.low.unit else LEAST_SHARE * float(self.high.number - self.low.number)
        )
        at = _next_place({self._place(setting): score for setting, score in scores.items()}, least_step)
        return None if at is None else self._at(at)

    def _place(self, setting: Setting) -> float:
        """Return where a setting lies on the scale."""
        return math.log(setting.number) if self.low.unit else float(setting.number)

    def _at(self, place: float) -> Setting:
        """Return a setting with few digits at a place on the scale."""
        if self.low.unit:
            return replace(self.low, number=Fraction(f"{math.exp(place):.{_DIGITS}g}"))
        behind_the_point = _DIGITS - math.floor(math.log10(self.high.number - self.low.number))
        return replace(self.low, number=round(place, behind_the_point))


Searched = Sequence[Setting] | Range
"""What is evaluated: settings that are named, or a range of them."""


def _hint(unit: str, times: str) -> str:
    if not unit:
        return "two numbers from -1 to 100, the smaller one first: 0 1"
    if unit.startswith("%"):
        return f"two shares above 0, the smaller one first: 2{unit} 20{unit}"
    return f"two times above 0, the shorter one first: {times}"


def _next_place(scores: Mapping[float, float], least_step: float) -> float | None:
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
