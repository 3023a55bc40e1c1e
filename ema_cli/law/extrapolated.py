"""Beyond an average, on the line from another one. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Self

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law.events import Gap
from ema_cli.law.law import Law, Words
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.time import Time, Unit
from ema_cli.law.weights import Gaps

_LEAST, _MOST = -1.0, 100.0


@dataclass(frozen=True, slots=True)
class Extrapolated:
    """(1 + factor) x `average` - factor x `away_from`: a step along the line through two averages, beyond the first.

    Raises:
        UsageError: for a factor outside of [-1, 100], and for averages that do not go together.
    """

    average: Law
    away_from: Law
    factor: float

    corrects_bias: ClassVar[bool] = False
    over_clocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not _LEAST <= self.factor <= _MOST:
            raise UsageError(
                f"{self.factor:g} is not from {_LEAST:g} to {_MOST:g}",
                option="extrapolate",
                hint="0 is the average itself, 1 as far beyond it as the other one lies behind",
            )
        if self.average == self.away_from:
            raise UsageError(
                f"{self._from} is the average itself: no line goes through it alone",
                option="extrapolate_from",
                hint="give another half-life, or window; by default it is twice as long",
            )
        both = (self.average, self.away_from)
        if len({law.unit for law in both}) > 1 or len({law.default_interval for law in both}) > 1:
            raise UsageError(
                f"'{self._from}' and '{self.average.words().value}' have different units, or updates",
                option="extrapolate_from",
                hint="give both in one unit, and both of at least 1 of it or both below",
            )

    @property
    def name(self) -> str:
        """Return `50ba-extrapolate-0.5-from-100ba`."""
        return f"{self.average.name}-extrapolate-{self.factor!r}-from-{self._from}"

    @property
    def _from(self) -> str:
        return str(self.away_from.window or self.away_from.name)

    @property
    def unit(self) -> Unit | None:
        """Return the unit of both."""
        return self.average.unit

    @property
    def window(self) -> Time | None:
        """Return the longer window: what lies in either enters."""
        windows = [law.window for law in (self.average, self.away_from) if law.window is not None]
        return max(windows, key=lambda window: window.value, default=None)

    @property
    def default_interval(self) -> Time | None:
        """Return that of both."""
        return self.average.default_interval

    def begun_at(self, start: Time | None) -> Self:
        """Return the law for averages that begin at `start`.

        Raises:
            UsageError: for a start in another unit.
        """
        laws = [
            law.begun_at(start) if isinstance(law, RelativeHalfLife) else law for law in (self.average, self.away_from)
        ]
        return replace(self, average=laws[0], away_from=laws[1])

    def measure(self, gap: Gap) -> Fraction:
        """Return the gap as both count it."""
        return self.average.measure(gap)

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return (1 + factor) x the weights of the one - factor x those of the other."""
        ours, theirs = (_weights(law, gaps, clocks) for law in (self.average, self.away_from))
        return [(1 + self.factor) * own - self.factor * other for own, other in zip(ours, theirs, strict=True)]

    def words(self) -> Words:
        """Return average and factor as people read them."""
        words = self.average.words()
        step = f"extrapolated by {self.factor:g} from {self._from}"
        return Words(words.noun, f"{words.value} {step}", (*words.details, step))

    def phrase(self, interval: Time | None) -> str:
        """Return both averages for a sentence."""
        return f"{self.average.phrase(interval)}, extrapolated by {self.factor:g} away from {self._from}"

    def to_dict(self) -> dict[str, Any]:
        """Return the average, the factor, and the half-life or the window of the other."""
        return {**self.average.to_dict(), "extrapolate": self.factor, "extrapolate_from": self._from}


def _weights(law: Law, gaps: Gaps, clocks: Sequence[Fraction]) -> list[float]:
    """Return the weights by a law; those before its window are 0."""
    begin = None if law.window is None else clocks[-1] - law.window.value
    earlier = 0 if begin is None else sum(clock < begin for clock in clocks)
    own = [Fraction(0), *map(Fraction, gaps[earlier + 1 :])]
    return [*([0.0] * earlier), *law.weights(own, clocks[earlier:], bias_correction=False)]
