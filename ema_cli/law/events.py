"""Update events: at which clocks an average is updated, and the gaps between them. No torch, no numpy.

The same for checkpoints that are folded afterwards and for a model that is averaged while it trains.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor

from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Gap:
    """The distance between an event and the one folded before it, in three measures.

    `time` and `updates` count the update events that were due, `elapsed` is the difference of the clocks. With an
    interval of 5ba, from 1ba to 17ba, the events at 5, 10 and 15ba were due: 15ba, 3 updates, 16ba elapsed.
    """

    time: Fraction
    updates: int
    elapsed: Fraction


@dataclass(slots=True)
class Events:
    """Decide of one clock after another whether it is an update event. With no `interval`, each later clock is one.

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
        """Return the gap to the event before, which is 0 for the first copy; None where `clock` is no event."""
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
