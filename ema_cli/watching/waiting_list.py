"""What was seen in a training's folder and is not folded yet, and what was missed."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import field
from fractions import Fraction
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time
from ema_cli.storage.location import location
from ema_cli.watching.asked import Waiting
from ema_cli.watching.looking import Lookout
from ema_cli.watching.telling import Listener


@dataclass(slots=True)
class _Waited:
    """A checkpoint that was seen, and is not folded yet: where, at which clock, since when, and whether it was read."""

    path: Path
    clock: Time
    since: float
    readable: bool


@dataclass(slots=True)
class WaitingList:
    """Checkpoints that are waited for, until they are complete or gone, or nobody has patience.

    Attributes:
        waiting, listener, lookout: how long one waits, who is told, and what is asked how old a file is.
        waited: what is not folded yet, by name.
        given_up: clocks of those that nobody waits for any longer, with what was told of each.
        gaps: what else was missed; like `given_up`, until it is written down, see `Journal`.
    """

    waiting: Waiting
    listener: Listener
    lookout: Lookout
    waited: dict[str, _Waited] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Return what was missed, and is not written down yet."""
        return [*self.given_up.values(), *self.gaps]

    def written_down(self) -> None:
        """Note that a journal holds what was missed."""
        self.given_up, self.gaps = {}, []

    def add(self, name: str, path: Path, clock: Time, *, readable: bool) -> _Waited:
        """Wait for a checkpoint, if nobody does yet."""
        return self.waited.setdefault(name, _Waited(path, clock, time.monotonic(), readable))

    def remove(self, name: str) -> None:
        """Wait for a checkpoint no longer: it was dealt with."""
        self.waited.pop(name, None)

    def holds(self, name: str, path: Path, clock: Time, *, readable: bool, left_out: Collection[str]) -> bool:
        """Return whether what is not complete is waited for still; where that ends, say so, once.

        Args:
            name, path, clock, readable: of the checkpoint.
            left_out: clocks of those that a journal says nobody waits for.
        """
        if str(clock) in self.given_up or str(clock) in left_out:
            return False
        if not self._has_waited(self.add(name, path, clock, readable=readable)):
            return True
        del self.waited[name]
        seconds = self.waiting.patience
        self.given_up[str(clock)] = f"{name} ({clock}) was not complete after {seconds:g} s, and is left out"
        self.listener.told(self.given_up[str(clock)])
        return False

    def is_over_for_any(self) -> bool:
        """Return whether something was waited for long enough."""
        return any(map(self._has_waited, self.waited.values()))

    def _has_waited(self, waited: _Waited) -> bool:
        """Return whether one was waited for long enough.

        Of a single look, the files of what is not complete say how long that is. What can be read has only to stay as
        it is for a while, however old it is.
        """
        seconds = time.monotonic() - waited.since
        if self.waiting.once and not waited.readable:
            seconds = self.lookout.age_of(waited.path)
        return seconds >= self.waiting.patience

    def tell_gone(self, present: Collection[str], clocks: Collection[Fraction | None], last: Fraction) -> None:
        """Tell of what was seen, and is gone before it was folded; what is complete now may have another name.

        Args:
            present, clocks: names and clocks of what is there.
            last: the clock that was folded last.
        """
        for name, waited in [*self.waited.items()]:
            if name in present or location(waited.path).info().exists:
                continue
            del self.waited[name]
            clock = Fraction(waited.clock.value)
            if clock > last and clock not in clocks:
                self.tell_gap(f"{name} ({waited.clock}) was deleted before it was read")

    def tell_first(self) -> None:
        """Tell what nothing that comes after it could enter for."""
        if self.waited:
            name, first = min(self.waited.items(), key=lambda item: Fraction(item[1].clock.value))
            self.listener.told(
                f"{name} ({first.clock}) is not complete, and holds back what comes after it, for "
                f"{self.waiting.patience:g} s"
            )

    def tell_gap(self, text: str) -> None:
        """Tell of what was missed, and keep it."""
        self.gaps.append(text)
        self.listener.told(text)
