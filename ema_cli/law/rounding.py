"""How much the rounding of stored averages comes to in a sum of them, beside what averaging changes at all.

Each update of an average rounds every element once, by 0.42 units of the precision u in the root mean square (its
mantissa being as likely at one place as at another). What an update has rounded is kept with the share that the
average of then has now, so that after n updates the error of an average with the norm |a| is

    0.42 u |a| sqrt(sum over updates of (share kept since) ** 2),

and one rounding more where it is stored in a narrower type. In a sum with the weights c the errors add up as
independent ones: sqrt(sum (c_k error_k) ** 2).

What averaging changes is the distance of the model from the average that is asked for. `EMA.store` writes that of each
stored average, its spread. An average of a shorter mean age is nearer to the model: at least in proportion, if the
model kept its direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ema_cli.dataclass import dataclass
from ema_cli.law.law import Growing, LiveLaw, Steady

_ROUNDED = 0.42
_FLOAT32 = 2.0**-24
_MEASURABLE = 100  # times the rounding of a stored average: a smaller spread is noise itself


@dataclass(frozen=True, slots=True)
class Measured:
    """A stored average with what its file says of its size.

    Attributes:
        law: None for the first copy, which is exact.
        clock: the training time at which it was stored.
        updates: the number of updates up to there.
        gap: the training time between two of them.
        precision: of the type in which it is stored: half the distance of 1 from the next number.
        norm, spread: as `EMA.store` wrote them.
    """

    law: LiveLaw | None
    clock: float
    updates: float
    gap: float
    precision: float
    norm: float
    spread: float

    @property
    def error(self) -> float:
        """Return the norm of what rounding has changed in it."""
        summed = min(self.precision, _FLOAT32)
        narrowed = self.precision if self.precision > _FLOAT32 else 0.0
        rounded = summed * math.sqrt(self.kept.squares) if self.law else 0.0
        return _ROUNDED * self.norm * math.hypot(rounded, narrowed)

    @property
    def least_spread(self) -> float:
        """Return the least distance from the model that can be told from rounding in float32."""
        return _MEASURABLE * _ROUNDED * self.norm * min(self.precision, _FLOAT32) * math.sqrt(self.kept.squares)

    @property
    def kept(self) -> Kept:
        """Return how much of it comes from how long ago."""
        return kept(self.law, self.gap, self.updates)


@dataclass(frozen=True, slots=True)
class Kept:
    """The sums over updates of the share of an average that is kept since then, and of its square."""

    sum: float
    squares: float


def kept(law: LiveLaw | None, gap: float, updates: float) -> Kept:
    """Return how much of an average comes from how long ago, after so many updates with a gap between them.

    `sum` is the mean age of the models in it, in updates.
    """
    if law is None or updates < 1:
        return Kept(max(updates, 1.0), 1.0)
    course = law.course(gap, 1.0)
    if isinstance(course, Growing):
        return Kept(updates / (course.exponent + 1), max(updates / (2 * course.exponent + 1), 1.0))
    return Kept(_geometric(course, 1, updates), max(_geometric(course, 2, updates), 1.0))


def _geometric(course: Steady, power: int, updates: float) -> float:
    """Return the sum of kept ** (power * j) over j from 0 to `updates` - 1."""
    rate = power * course.log_kept
    if rate == -math.inf:
        return 1.0
    return updates if rate > -1e-12 else math.expm1(rate * updates) / math.expm1(rate)


def spread_of(law: LiveLaw, newest: Sequence[Measured]) -> float:
    """Return what averaging by this law changes at least: the distance of the model from that average.

    It follows from the newest stored averages alone. Earlier ones were far from another model: where the learning rate
    falls, from one that still moved.
    """
    age = kept(law, newest[0].gap, newest[0].updates).sum
    return max(max(_scaled(one, age) for one in newest), min(one.least_spread for one in newest))


def _scaled(one: Measured, age: float) -> float:
    """Return the least distance of the model from an average of another mean age in updates."""
    return one.spread * min(1.0, age / one.kept.sum)
