"""Update events, and how much of the old average each of them keeps. No torch, no numpy.

The same law for checkpoints that are folded afterwards and for a model that is averaged while it trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from ema_cli.law import time


@dataclass(frozen=True, slots=True)
class Gap:
    """What lies between an event and the one folded before it.

    `time` and `updates` count the update events that were due, `elapsed` is the difference of the clocks.
    """

    time: Fraction
    updates: int
    elapsed: Fraction


@dataclass(slots=True)
class Events:
    """Which clocks are update events, met one after another. With no `interval`, each later clock is one.

    Event n happens when the clock reaches n x interval, so a clock t has passed floor(t / interval) of them; it is
    folded if and only if that is more than at the clock folded before. The first copy is as in Composer: never the
    untrained model, and not before min(1 unit, interval). `previous` is the clock that was folded last.
    """

    interval: Fraction | None
    previous: Fraction | None = None

    @property
    def first(self) -> Fraction:
        """Return the least clock of a first copy, where there is an interval."""
        return Fraction(1) if self.interval is None else min(Fraction(1), self.interval)

    def meet(self, clock: Fraction) -> Gap | None:
        """Return the gap to the event before, of no length for the first copy; None where `clock` is no event."""
        gap = self._gap(clock)
        if gap is not None:
            self.previous = clock
        return gap

    def _gap(self, clock: Fraction) -> Gap | None:
        previous = self.previous
        if previous is None:
            is_first = clock > 0 if self.interval is None else clock >= self.first
            return Gap(Fraction(0), 0, Fraction(0)) if is_first else None
        if self.interval is None:
            return Gap(clock - previous, 1, clock - previous) if clock > previous else None
        updates = floor(clock / self.interval) - floor(previous / self.interval)
        return Gap(updates * self.interval, updates, clock - previous) if updates > 0 else None


@dataclass(frozen=True, slots=True)
class HalfLife:
    """Composer's law: what is `value` units old counts half."""

    value: Fraction | float

    def admitted(self, gap: Gap, clock: Fraction) -> float:
        """Return the share of the newest in the average at an event."""
        return time.admitted(gap.time, self.value)


@dataclass(frozen=True, slots=True)
class Smoothing:
    """A share of the old average, in [0, 1], that each update keeps."""

    value: float

    def admitted(self, gap: Gap, clock: Fraction) -> float:
        """Return the share of the newest in the average at an event."""
        return 1 - self.value**gap.updates


@dataclass(frozen=True, slots=True)
class Power:
    """The power-function profile of Karras et al. 2024: weights grow as clock ** gamma.

    `sigma_rel` is the profile's standard deviation as a share of the training time, their equation 123:
    sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
    """

    sigma_rel: float

    @property
    def gamma(self) -> float:
        """Return the exponent: where their equation 123 gives `sigma_rel`, which falls as gamma grows."""
        low, high = 0.0, 1.0
        while _sigma_rel(high) > self.sigma_rel:
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if _sigma_rel(middle) > self.sigma_rel else (low, middle)
        return high

    def admitted(self, gap: Gap, clock: Fraction) -> float:
        """Return 1 - (clock before / clock) ** (gamma + 1), their equation 127."""
        return power_share(clock - gap.elapsed, clock, self.gamma)


Law = HalfLife | Smoothing | Power

UNIFORM_SIGMA_REL = 12**-0.5  # of gamma 0: all of the training counts the same


def power_share(before: Fraction | float, clock: Fraction | float, gamma: float) -> float:
    """Return the share of a power profile that lies between two clocks, of what lies up to the later one."""
    if before <= 0:
        return 1.0
    return -math.expm1((gamma + 1) * math.log(before / clock))


def _sigma_rel(gamma: float) -> float:
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
