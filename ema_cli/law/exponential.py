"""The exponential laws, which are Composer's: a half-life in training time, or a smoothing at each update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law import decay, weights
from ema_cli.law.events import Gap
from ema_cli.law.law import EveryCheckpoint, Steady, Words
from ema_cli.law.time import Time, Unit
from ema_cli.law.weights import Gaps


@dataclass(frozen=True, slots=True)
class HalfLife:
    """Composer's law: a checkpoint that is `half_life` old counts half."""

    half_life: Time

    corrects_bias: ClassVar[bool] = True
    over_clocks: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return the half-life."""
        return str(self.half_life)

    @property
    def unit(self) -> Unit:
        """Return the unit of the half-life."""
        return self.half_life.unit

    def doubled(self) -> HalfLife:
        """Return the law of a half-life that is twice as long."""
        return HalfLife(Time(2 * self.half_life.value, self.half_life.unit))

    @property
    def window(self) -> None:
        """Return None: all checkpoints enter."""

    @property
    def default_interval(self) -> Time | None:
        """Return 1 in the unit of the half-life, as in Composer; None for a half-life below that."""
        return None if self.half_life.value < 1 else Time(Fraction(1), self.half_life.unit)

    def measure(self, gap: Gap) -> Fraction:
        """Return the training time of the events that were due."""
        return gap.time

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the weights by Composer's law."""
        return weights.half_life_weights(gaps, self.half_life.value, bias_correction=bias_correction)

    def share(self, gap: Gap, clock: Fraction) -> float:
        """Return 1 - 2 ** -(gap / half_life)."""
        return decay.admitted(gap.time, self.half_life.value)

    def course(self, time: float, updates: float) -> Steady:
        """Return the decay in the time between two events."""
        value = float(self.half_life.value)
        return Steady(-math.log(2) * time / value if value else -math.inf)

    def share_until(self, clock: float, updates: float, end: float, end_updates: float) -> float:
        """Return 2 ** -(time since then / half_life)."""
        value = float(self.half_life.value)
        return math.pow(2.0, -((end - clock) / value)) if value else 0.0

    def words(self) -> Words:
        """Return the half-life as people read it."""
        return Words("half-life", self.name, (f"half-life {self.name}",), high="long", low="short")

    def phrase(self, interval: Time | None) -> str:
        """Return the half-life for a sentence."""
        return f"a half-life of {self.name}{_every(interval)}"

    def to_dict(self) -> dict[str, str | float]:
        """Return the half-life as text."""
        return {"half_life": self.name}


@dataclass(frozen=True, slots=True)
class Smoothing(EveryCheckpoint):
    """Each update keeps the share `value` of the old average, in [0, 1].

    Raises:
        UsageError: for a share outside of that.
    """

    value: float

    corrects_bias: ClassVar[bool] = True
    over_clocks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise UsageError(
                f"{self.value:g} is not in [0, 1]",
                option="smoothing",
                hint="the share of the old average that is kept at one update, as 0.99",
            )

    @property
    def name(self) -> str:
        """Return `smoothing-0.99`."""
        return f"smoothing-{self.value!r}"

    @property
    def unit(self) -> None:
        """Return None: only updates count."""

    def measure(self, gap: Gap) -> Fraction:
        """Return the updates that were due."""
        return Fraction(gap.updates)

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the weights with the same share kept at each update."""
        return weights.smoothing_weights(gaps, self.value, bias_correction=bias_correction)

    def share(self, gap: Gap, clock: Fraction) -> float:
        """Return 1 - value ** updates."""
        return 1 - self.value**gap.updates

    def course(self, time: float, updates: float) -> Steady:
        """Return the decay in the updates between two events."""
        return Steady(updates * math.log(self.value) if self.value else -math.inf)

    def share_until(self, clock: float, updates: float, end: float, end_updates: float) -> float:
        """Return value ** (updates since then)."""
        return math.pow(self.value, end_updates - updates)

    def words(self) -> Words:
        """Return the smoothing as people read it."""
        return Words("smoothing", f"{self.value:g}", (f"smoothing {self.value}",), high="high", low="low")

    def phrase(self, interval: Time | None) -> str:
        """Return the smoothing for a sentence."""
        return f"a smoothing of {self.value!r}{_every(interval) or ' at each checkpoint'}"

    def to_dict(self) -> dict[str, str | float]:
        """Return the share that is kept."""
        return {"smoothing": self.value}


def _every(interval: Time | None) -> str:
    return f" and an update every {interval}" if interval else ""
