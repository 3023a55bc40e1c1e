"""The half-life that is a share of the training so far: `5%ba`. No torch, no numpy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import ClassVar, Self

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.law import decay, weights
from ema_cli.law.events import Gap
from ema_cli.law.law import EveryCheckpoint, Growing, Words
from ema_cli.law.time import UNIT_NAMES, Time, Unit, format_number
from ema_cli.law.weights import Gaps
from ema_cli.text import lazy_pattern

_SHARE = lazy_pattern(rf"([0-9]{{1,10}}(?:\.[0-9]{{0,20}})?)\s*%\s*({'|'.join(UNIT_NAMES)})", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class RelativeHalfLife(EveryCheckpoint):
    """What `percent` % of the training so far has passed since counts half: the law of torchtitan's EMA.

    It is the power-function profile of the exponent ln(2) / share - 1: what goes before keeps (t_1 / t_2) ** (ln(2) /
    share) from one update to the next. t is counted from `origin`, where the average begins.

    Raises:
        UsageError: for a share outside of (0, 100] %.
    """

    percent: Fraction
    unit: Unit
    origin: Fraction = Fraction(0)

    corrects_bias: ClassVar[bool] = False
    over_clocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise UsageError(
                f"{self.name} is no share of the training so far",
                option="half_life",
                hint="above 0 % and at most 100 %",
            )

    @classmethod
    def parse(cls, text: str, *, option: str | None = None, subject: str | None = None) -> Self:
        """Read `5%ba`. An error names the `option` whose value it is, or else the `subject` that holds it.

        Raises:
            UsageError: for anything else.
        """
        match = _SHARE.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"'{text[:60]}' is no share of the training so far",
                option=option,
                subject=subject,
                hint="write a number, % and a unit: 5%ba, 0.5%tok",
            )
        return cls(Fraction(match[1]), UNIT_NAMES[match[2].lower()])

    def begun_at(self, start: Time | None) -> Self:
        """Return the law for an average that begins at `start`.

        Raises:
            UsageError: for a start in another unit.
        """
        if start is None or start.value == 0:
            return self
        if start.unit is not self.unit:
            raise UsageError(
                f"'{start}' and {option('half_life', self.name)} have different units, and the training so far is "
                "counted from there",
                option="start",
                hint="give both in the same unit",
            )
        return replace(self, origin=Fraction(start.value))

    @property
    def exponent(self) -> float:
        """Return ln(2) / share: the sum of weights up to a clock grows as clock ** exponent."""
        return math.log(2) / float(self.percent / 100)

    @property
    def name(self) -> str:
        """Return `5%ba`."""
        return f"{format_number(self.percent)}%{self.unit}"

    def doubled(self) -> Self:
        """Return the law of twice the share."""
        return replace(self, percent=2 * self.percent)

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the share of the profile that each checkpoint stands for; one at the origin has none."""
        return weights.power_weights([clock - self.origin for clock in clocks], self.exponent - 1)

    def share(self, gap: Gap, clock: Fraction) -> float:
        """Return 1 - (time before / time) ** (ln(2) / share), both since the origin."""
        time = clock - self.origin
        return decay.power_share(time - gap.elapsed, time, self.exponent - 1)

    def course(self, time: float, updates: float) -> Growing:
        """Return the exponent of the sum of weights, and the clock from which it grows."""
        return Growing(self.exponent, float(self.origin))

    def share_until(self, clock: float, updates: float, end: float, end_updates: float) -> float:
        """Return (time by then / time in all) ** (ln(2) / share), both since the origin."""
        origin = float(self.origin)
        return math.pow(max(clock - origin, 0.0) / (end - origin), self.exponent)

    def words(self) -> Words:
        """Return the half-life as people read it."""
        return Words("half-life", self.name, (f"half-life {self.name} of the training so far",))

    def phrase(self, interval: Time | None) -> str:
        """Return the half-life for a sentence."""
        every = f" and an update every {interval}" if interval else ""
        return f"a half-life of {format_number(self.percent)} % of the {self.unit.plural} so far{every}"

    def to_dict(self) -> dict[str, str | float]:
        """Return the half-life as text; where the average begins is not the law's to say."""
        return {"half_life": self.name}


def as_relative(text: object, **where: str | None) -> RelativeHalfLife | None:
    """Return the half-life in a text with a `%`; None for any other, and for what is no text."""
    return RelativeHalfLife.parse(text, **where) if isinstance(text, str) and "%" in text else None
