"""What is asked for, as data: the law, and which checkpoints it is applied to. No torch, no numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from ema_cli.errors import UsageError
from ema_cli.units import Time, Unit

EVERY = "every"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for. Exactly one of `half_life` and `smoothing` (a share per update, in [0, 1]).

    `update_interval` is a time, `EVERY` (each checkpoint is an event), or None: 1 in the unit of the half-life,
    `EVERY` for a half-life below one unit or with `smoothing`. `start` and `stop` are inclusive.

    Raises:
        UsageError: for values or combinations that make no sense.
    """

    half_life: Time | None = None
    update_interval: Time | str | None = None
    smoothing: float | None = None
    start: Time | None = None
    stop: Time | None = None
    last: int | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if (self.half_life is None) == (self.smoothing is None):
            what = "one of" if self.half_life is None else "only one of"
            raise UsageError(
                f"{what} --half-life and --smoothing is needed",
                hint="for instance --half-life 50ba: after 50 batches a checkpoint counts half",
            )
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise UsageError(
                f"--smoothing: {self.smoothing:g} is not in [0, 1]",
                hint="the share of the old average that is kept at one update, as 0.99",
            )
        if isinstance(self.update_interval, Time):
            self._check_interval(self.update_interval)
        elif self.update_interval not in (None, EVERY):
            raise UsageError(f"--update-interval: '{self.update_interval}' is neither a time nor '{EVERY}'")
        if self.last is not None and self.last < 1:
            raise UsageError(f"--last: {self.last} is not a number of checkpoints", hint="at least 1")
        if self.start is not None and self.start.value == math.inf:
            raise UsageError("--start: infinity leaves nothing to average", hint="give a clock, as 1000ba")

    def _check_interval(self, interval: Time) -> None:
        if not 0 < interval.value < math.inf:
            raise UsageError(
                f"--update-interval: '{interval}' is no distance between updates",
                hint=f"as 10ba, or '{EVERY}' to fold each checkpoint",
            )
        if self.half_life is not None and interval.unit != self.half_life.unit:
            raise UsageError(
                f"--update-interval: '{interval}' and --half-life '{self.half_life}' have different units",
                hint="give both in the same unit",
            )

    @property
    def interval(self) -> Time | None:
        """Return the distance between update events, None where each checkpoint is one."""
        if isinstance(self.update_interval, Time):
            return self.update_interval
        if self.update_interval == EVERY or self.half_life is None or self.half_life.value < 1:
            return None
        return Time(Fraction(1), self.half_life.unit)

    @property
    def unit(self) -> Unit | None:
        """Return the unit of the clocks that the law needs, None where an order is enough."""
        if self.half_life is not None:
            return self.half_life.unit
        return self.interval.unit if self.interval else None
