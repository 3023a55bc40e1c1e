"""What a watch does with each checkpoint that it finds: it waits for it, folds it, or says why it does not enter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import field, replace
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, NonFiniteError, RunError, option
from ema_cli.folding.buffers import BufferSizes
from ema_cli.law.time import Time, Unit
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.planning.clock_checks import check_clocks, check_units
from ema_cli.runs.run import Run
from ema_cli.storage.location import location
from ema_cli.watching.asked import Asked
from ema_cli.watching.errors import goes_back, no_clock, not_finite, other_contents
from ema_cli.watching.keeping import Update, update
from ema_cli.watching.looking import Lookout, Pending, Seen, is_last, is_marked, with_clock
from ema_cli.watching.missing import spacing_gap
from ema_cli.watching.moments import Moment, drop_older, kept_in
from ema_cli.watching.multiples import is_kept
from ema_cli.watching.past import Past, time_of
from ema_cli.watching.telling import Entered, Listener
from ema_cli.watching.updating import Skip, make_update, sizes_for
from ema_cli.watching.waiting_list import WaitingList
from ema_cli.writing.replacing import check_no_input

_LATE = "came too late"


@dataclass(slots=True)
class Intake:
    """What is known of the checkpoints that come.

    Attributes:
        asked, listener, lookout: what is wanted, who is told, and what looks at the folder.
        waiting_list: what is waited for, and what was missed.
        moment: the newest; None before the first copy.
        unit: that of the clocks that count.
        known: names and looks of the checkpoints that were dealt with.
        skipped: what was looked at since the moment, and does not enter; not written down yet, see `Journal`.
        entered: those that were folded, or not, since the watch began.
        over: whether nothing more will come.
        unsettled: seconds until something may be complete.
    """

    asked: Asked
    listener: Listener
    lookout: Lookout
    waiting_list: WaitingList
    moment: Moment | None = None
    unit: Unit | None = None
    known: set[tuple[str, str]] = field(default_factory=set)
    skipped: list[Past] = field(default_factory=list)
    entered: list[Entered] = field(default_factory=list)
    over: bool = False
    unsettled: float | None = None
    _sizes: BufferSizes | None = None

    def go_on_from(self, moment: Moment) -> None:
        """Go on where an older watch ended."""
        self.moment, self.unit = moment, moment.journal.unit
        self.known.update((past.name, past.look) for past in (*moment.journal.folded, *moment.journal.skipped))

    def take(self, seen: Seen) -> None:
        """Fold what is complete, in the order of the clocks."""
        run = seen.run
        if run is None:
            return
        check_no_input(self.asked.published, (file for one in run.checkpoints for file in one.files))
        self.unit = unit = self.unit or self.asked.recipes[0].unit or next(iter(run.units), None)
        if unit is None:
            raise no_clock(run.root)
        pending = [
            one for one in with_clock(seen.pending, unit, run) if one.clock is not None and one.clock > self._last
        ]
        self.waiting_list.tell_gone(
            {*(checkpoint.name for checkpoint in run.checkpoints), *(one.name for one in pending)},
            {checkpoint.clock(unit) for checkpoint in run.checkpoints},
            self._last,
        )
        for checkpoint in run.checkpoints:
            if self.over or not self._meet(run, checkpoint, unit, pending):
                break
        newest = run.checkpoints[-1] if run.checkpoints else None
        if newest is not None and self._is_known(newest) and (is_last(newest) or self._reaches(newest)):
            self.over = True

    @property
    def _last(self) -> Fraction:
        """Return the clock that was folded last; less than any where none was."""
        return Fraction(-1) if self.moment is None else Fraction(self.moment.clock.value)

    @property
    def _looked_at(self) -> tuple[Past, ...]:
        """Return all checkpoints that were dealt with."""
        journal = None if self.moment is None else self.moment.journal
        return (*self.skipped, *(() if journal is None else (*journal.folded, *journal.skipped)))

    def _meet(self, run: Run, checkpoint: Checkpoint, unit: Unit, pending: Sequence[Pending]) -> bool:
        """Deal with a checkpoint, if it is time; return whether those after it may be dealt with, too."""
        if self._is_known(checkpoint):
            return True
        asked, waiting = self.asked, self.asked.waiting
        clock = checkpoint.clock(unit)
        if clock is None:
            if not checkpoint.progress.clocks and not checkpoint.averaged:
                raise no_clock(checkpoint.path)
            check_units(run, self.asked.recipes[0])
            raise RunError(f"records no clock in {unit.plural}, in which the averages count", subject=checkpoint.path)
        for name, every in (
            ("until", waiting.until),
            ("publish_every", asked.publish_every),
            ("store_every", asked.store_every),
        ):
            if every is not None:
                check_clocks(run, every, option(name))
        earlier = (one for one in pending if (one.clock or 0) < clock)
        held = any(self._holds(one.name, one.path, one.clock, readable=False) for one in earlier)
        until = waiting.until
        if until is not None and (checkpoint.clock(until.unit) or 0) > until.value:
            self.over = not held
            return False
        if not self._is_settled(checkpoint):
            return clock <= self._last or not self._holds(checkpoint.name, checkpoint.path, clock, readable=True)
        if clock <= self._last:
            self._check_older(checkpoint, clock)
        elif held:
            self.waiting_list.add(checkpoint.name, checkpoint.path, Time(clock, unit), readable=True)
            return False
        else:
            self._fold(run, checkpoint)
        return True

    def _is_known(self, checkpoint: Checkpoint) -> bool:
        return (checkpoint.name, self.lookout.look_of(checkpoint.path)) in self.known

    def _holds(self, name: str, path: Path, clock: Fraction | None, *, readable: bool) -> bool:
        """Return whether what is not complete is waited for still."""
        assert self.unit is not None
        left_out = () if self.moment is None else self.moment.journal.given_up
        return clock is not None and self.waiting_list.holds(
            name, path, Time(clock, self.unit), readable=readable, left_out=left_out
        )

    def _is_settled(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint is complete; note when that may be."""
        if is_marked(checkpoint):
            return True
        left = self.asked.waiting.settle - self.lookout.quiet_for(checkpoint.path)
        if left <= 0 and self.lookout.is_as_looked_at(checkpoint):
            return True
        self.unsettled = max(min(left, self.unsettled if self.unsettled is not None else left), 0.0)
        return False

    def _check_older(self, checkpoint: Checkpoint, clock: Fraction) -> None:
        """Check a checkpoint that is not newer than what was folded: it must be one that is known.

        Raises:
            RunError: where it has other contents than what was dealt with at its clock, or a clock that was passed.
        """
        assert self.moment is not None
        assert self.unit is not None
        alike = [past for past in self._looked_at if past.clock(self.unit) == clock and past.skipped != _LATE]
        if alike:
            try:
                fingerprint = fingerprints([checkpoint], 1)[0]
            except CheckpointError:
                if self.lookout.is_there(checkpoint):
                    raise
                return
            if all(past.fingerprint != fingerprint for past in alike):
                raise other_contents(self.asked, checkpoint, alike[0], self.unit)
        elif str(Time(clock, self.unit)) in {*self.waiting_list.given_up, *self.moment.journal.given_up}:
            self.listener.told(f"{checkpoint.name} {_LATE}: the averages are at {self.moment.clock}")
            look = self.lookout.look_of(checkpoint.path)
            self.skipped.append(Past.of(checkpoint, "", look, _LATE))
        elif clock >= (self.moment.journal.folded[0].clock(self.unit) or 0):
            raise goes_back(self.asked, checkpoint, self.moment, self.unit)
        self.known.add((checkpoint.name, self.lookout.look_of(checkpoint.path)))

    def _fold(self, run: Run, checkpoint: Checkpoint) -> None:
        """Fold a checkpoint, or note why it does not enter. One that is not there any more leaves no trace."""
        assert self.unit is not None
        began, clock = time.monotonic(), time_of(checkpoint, self.unit)
        look, reason, missing = self.lookout.look_of(checkpoint.path), None, None
        try:
            past = Past.of(checkpoint, fingerprints([checkpoint], 1)[0], look)
            made = make_update(self.asked, self.moment, run, checkpoint, past, self.unit)
            self.waiting_list.given_up.pop(str(clock), None)  # complete after all, before anything later entered
            if not self.waiting_list.missed:
                before = (one.clock(self.unit) for one in self._looked_at)
                missing = spacing_gap(filter(None, before), clock)
            if isinstance(made, Skip):
                reason = made.reason
                self.skipped.append(replace(past, skipped=reason))
            else:
                self._update(made, missing)
        except (CheckpointError, NonFiniteError) as error:  # what is changed meanwhile may look like anything
            if self.lookout.is_there(checkpoint):
                if isinstance(error, NonFiniteError):
                    raise not_finite(error, checkpoint) from error
                raise
            self.waiting_list.remove(checkpoint.name)
            if not location(checkpoint.path).info().exists:
                self.waiting_list.tell_gap(f"{checkpoint.name} ({clock}) was deleted while it was read")
            return
        if missing is not None:
            self.listener.told(missing)
        self.known.add((checkpoint.name, look))
        self.waiting_list.remove(checkpoint.name)
        self.entered.append(Entered(clock, checkpoint.name, time.monotonic() - began, reason))
        self.listener.entered(self.entered[-1])
        self.over = is_last(checkpoint) or self._reaches(checkpoint)

    def _update(self, made: Update, missing: str | None) -> None:
        journal = replace(
            made.journal,
            skipped=(*made.journal.skipped, *self.skipped),
            given_up=(*made.journal.given_up, *self.waiting_list.given_up),
            gaps=(*made.journal.gaps, *self.waiting_list.missed, *([] if missing is None else [missing])),
            kept=is_kept(self.asked.store_every, self.moment, made.checkpoint),
        )
        if self._sizes is None:
            self._sizes = sizes_for(self.asked, made)
        self.moment = update(self.asked.folder, self.moment, replace(made, journal=journal), self._sizes, self._check)
        self.skipped = []
        self.waiting_list.written_down()
        drop_older(self.asked.folder, self.moment.folder)

    def _check(self, checkpoint: Checkpoint) -> None:
        """Check what must be so when a moment is published: that the checkpoint is as it was, and nobody else writes.

        Raises:
            CheckpointError: where the checkpoint is gone, or was changed.
            OutputError: where another watch took over what is kept in a store.
        """
        self.lookout.check_there(checkpoint)
        kept_in(self.asked.folder).check_held()

    def _reaches(self, checkpoint: Checkpoint) -> bool:
        until = self.asked.waiting.until
        return until is not None and (checkpoint.clock(until.unit) or 0) >= until.value
