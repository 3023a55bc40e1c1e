"""The averages of one model with their laws, clocks and tensors: the state that EMA, saving and resuming share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law.branches import Branch, Lineage
from ema_cli.law.events import Events
from ema_cli.law.time import Time, Unit
from ema_cli.online.clocks import Clocks, Count
from ema_cli.online.identity import new_identity
from ema_cli.online.places import write_back
from ema_cli.online.store import Offload, Store, no_gradients
from ema_cli.online.tracked import Tracked
from ema_cli.online.tracks import Tracks


@dataclass(slots=True, eq=False)
class Averages:
    """The averages of `model`, one for each law of `tracks`, and the training time at their first copy and last update.

    Attributes:
        model: the bare model that trains.
        tracks: the laws by name, and the schedule of updates.
        offload: "cpu" keeps the averages in the host's memory.
        keeps_first: whether the first copy is kept until it is stored: the model at the moment the averages began.
        clocks: the training time that has passed.
        events: the update events, and the clock of the last one.
        updates: the number of updates since the first copy.
        began: the clock of the first copy, None before it.
        first: the tensors of the first copy by name, in the host's memory, until it is stored.
        mixed: whether the averages had another law before a state was loaded.
        lineage: this start or resume of the training, and those that it goes back to.
        tidied: the folders in which this start or resume has stored something.
        training: the training weights while an average is in the model, None while the model holds them itself.
    """

    model: nn.Module
    tracks: Tracks
    offload: Offload = None
    keeps_first: bool = False
    clocks: Clocks = field(default_factory=Clocks)
    events: Events = field(init=False)
    updates: int = 0
    began: Fraction | None = None
    first: dict[str, Tensor] | None = None
    mixed: bool = False
    lineage: Lineage = field(default_factory=lambda: (Branch(new_identity()),))
    tidied: set[Path] = field(default_factory=set)
    training: list[Tensor] | None = None
    _store: Store | None = None

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        # A copy that was made while an average was in the model has the training weights in its own model again.
        for name, value in state[1].items():
            setattr(self, name, value)
        if self.training is not None:
            with no_gradients():
                for tensor, before in zip(self.store().live(), self.training, strict=True):
                    write_back(tensor, before)
            self.training = None

    def __post_init__(self) -> None:
        interval = self.tracks.interval
        self.events = Events(None if interval is None else Fraction(interval.value))

    @property
    def names(self) -> list[str]:
        """Return the names of the averages: `25ba`, `smoothing-0.99`, `power-0.1`."""
        return list(self.tracks.laws)

    @property
    def clock(self) -> Time | None:
        """Return the clock of the last update, None before the first copy."""
        return None if self.events.previous is None else Time(self.events.previous, self.tracks.unit)

    @property
    def started(self) -> bool:
        """Return whether the averages have begun."""
        return self.events.previous is not None

    def number(self, name: str | None) -> int:
        """Return the number of the average called `name`; None will do if there is only one.

        Raises:
            UsageError: for an unknown name, for None if there are several averages, and before the first copy.
        """
        if name is None and len(self.names) > 1:
            raise UsageError("there are several averages", hint=f"say which: {', '.join(self.names)}")
        if name is not None and name not in self.names:
            raise UsageError(f"there is no average '{name}'", hint=f"there is {', '.join(self.names)}")
        if not self.started:
            raise UsageError(
                "there is no average yet", hint="call update() after each batch, the first time at ema_start"
            )
        return 0 if name is None else self.names.index(name)

    def advance(self, passed: Mapping[Unit, Count | None]) -> bool:
        """Set the clocks to the training time that has `passed`; return whether that was an update event.

        Without any time given, one more batch has passed. At the first event each average becomes a copy of the model,
        at later ones it moves toward the model.

        Raises:
            UsageError: for a clock that goes back, or is missing in the unit that counts.
            RunError: if the model has other tensors than when the averages began.
        """
        clocks = self.clocks.advanced(passed)
        now = clocks.read(self.tracks.unit)
        events = Events(self.events.interval, self.events.previous)
        gap = events.meet(now) if clocks.reached(self.tracks.start) else None
        if gap is not None:
            store = self.store()
            if self.began is None:
                store.copy()
                self.first = store.snapshot() if self.keeps_first else None
                self.began = now
            else:
                store.move([law.share(gap, now) for law in self.tracks.laws.values()])
                self.updates += 1
        self.clocks, self.events = clocks, events
        return gap is not None

    def store(self) -> Store:
        """Return the store of the averages' tensors; allocate it on the first call.

        Raises:
            RunError: if the model has other tensors than when the averages began.
        """
        if self._store is None:
            self._store = Store(Tracked(self.model), len(self.names), self.offload)
        elif not self._store.tracked.is_current:
            newer = Tracked(self.model)
            if not self.started:  # allocated for `state_dict` only: nothing is lost
                self._store = Store(newer, len(self.names), self.offload)
                return self._store
            self._store.leave(self._store.tracked.check_same(newer))
            self._store.tracked.adopt(newer)
            self._store.take_values()
        return self._store

    def settled_store(self) -> Store:
        """Return the store of the averages' tensors, after the update that is under way.

        Raises:
            RunError: as `store`.
        """
        store = self.store()
        store.settle()
        return store

    def resume(self, past: Lineage) -> None:
        """Begin a new branch at the clock of the last update: what `past` stored later is none of this training's."""
        since = self.clock or Time(Fraction(0), self.tracks.unit)
        self.lineage = (*past, Branch(new_identity(), Time.parse(str(since))))  # as files will have it
        self.tidied = set()

    def forget(self, clocks: Clocks) -> None:
        """Go back to before the first copy, at `clocks`: the next event copies the model again."""
        self._store, self.first, self.began, self.clocks = None, None, None, clocks
        self.events.previous, self.updates, self.mixed = None, 0, False
