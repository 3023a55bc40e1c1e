"""The loop of a watch: what is known of the checkpoints that come, and what is done with each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import field, replace
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, RunError, option
from ema_cli.folding.buffers import BufferSizes
from ema_cli.job import Job
from ema_cli.law.time import Time, Unit
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.planning.clock_checks import check_clocks, check_units
from ema_cli.runs.run import Run
from ema_cli.storage.local_file import close_idle_files
from ema_cli.storage.location import location
from ema_cli.storage.staging import remove_abandoned
from ema_cli.watching.asked import Asked
from ema_cli.watching.errors import goes_back, no_clock, other_contents
from ema_cli.watching.keeping import Update, update
from ema_cli.watching.looking import Lookout, Pending, Seen, is_last, is_marked, with_clock
from ema_cli.watching.missing import spacing_gap
from ema_cli.watching.moments import Moment, drop_older, go_back, newest_moment, remove_litter
from ema_cli.watching.multiples import is_due, is_kept
from ema_cli.watching.past import Past, time_of
from ema_cli.watching.publishing import is_watched, job_of, publish, published_clock
from ema_cli.watching.telling import Entered, Listener, Watched
from ema_cli.watching.updating import Skip, make_update, sizes_for
from ema_cli.watching.waiting_list import WaitingList
from ema_cli.writing.replacing import check_no_input, check_target

_LEAST_SLEEP = 0.01
_LATE = "came too late"


@dataclass(slots=True)
class Loop:
    """What is known while it runs.

    Attributes:
        moment: the newest; None before the first copy.
        unit: that of the clocks that count.
        known: names and looks of the checkpoints that were dealt with.
        skipped: what was looked at since the moment, and does not enter; not written down yet, see `Journal`.
        waiting_list: what is waited for, and what was missed.
        shown: the clock of the averages that are published.
        begun: whether it is known that this output is to be written.
        due: whether newer ones are to be.
        over: whether nothing more will come.
        unsettled: seconds until something may be complete.
        troubled: since when the folder has been no run; a log that grows in it hides that nothing else changes.
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
    sizes: BufferSizes | None = None
    shown: Time | None = None
    job: Job | None = None
    begun: bool = False
    due: bool = False
    over: bool = False
    unsettled: float | None = None
    troubled: float | None = None

    def begin(self) -> None:
        """Go on where the last watch ended."""
        asked = self.asked
        if asked.restart_from is not None:
            for path in go_back(asked.folder, asked.restart_from):
                self.listener.told(f"given up, and kept as {path}: remove it when nobody needs it")
        remove_litter(asked.folder)
        remove_abandoned(asked.folder.parent)
        self.moment = newest_moment(asked.folder, asked.what())
        if self.moment is None:
            check_target(asked.published, [], force=asked.force)
            self.begun = True
            return
        journal = self.moment.journal
        self.unit = journal.unit
        self.known.update((past.name, past.look) for past in (*journal.folded, *journal.skipped))
        drop_older(asked.folder, self.moment.folder)
        self.job = job = job_of(asked, self.moment)
        self.shown = published_clock(job)
        if not is_watched(job):  # as where somebody has put something else there
            check_target(asked.published, [], force=asked.force)
        self.begun = True
        if self._is_due():
            self.publish()

    def run(self) -> None:
        """Look and fold until the end."""
        waiting, again = self.asked.waiting, False
        while True:
            if self.lookout.look() or again:
                self._take(self._examine())
                close_idle_files()
                if self.due and not self.over:
                    self.publish()
            if self.over or (waiting.once and self.unsettled is None):
                if not self.over:
                    self.waiting_list.tell_first()
                return
            self.listener.waiting(None if self.moment is None else self.moment.clock)
            soon = waiting.every if self.unsettled is None else max(self.unsettled, _LEAST_SLEEP)
            time.sleep(min(waiting.every, soon))
            again = self.unsettled is not None or self.waiting_list.is_over_for_any()

    def publish(self) -> None:
        """Write the averages, unless those that are there are of this moment."""
        self.due = False
        if self.moment is None or self.shown == self.moment.clock:
            return
        began = time.monotonic()
        self.job = publish(self.asked, self.moment)
        self.shown = self.moment.clock
        self.listener.published(self.shown, time.monotonic() - began, self.job)

    def recover(self) -> None:
        """Publish what is folded, wherever the loop was ended; nothing where it had not begun."""
        if self.begun:
            self.moment = newest_moment(self.asked.folder, self.asked.what())
            self.publish()

    def result(self) -> Watched:
        """Return what was done."""
        journal = None if self.moment is None else self.moment.journal
        return Watched(
            self.asked.target if self.job is None else self.job.target,
            None if self.moment is None else self.moment.clock,
            0 if journal is None else len(journal.folded),
            tuple(self.entered),
            (*(() if journal is None else journal.gaps), *self.waiting_list.missed),
            self.job,
        )

    @property
    def _last(self) -> Fraction:
        """Return the clock that was folded last; less than any where none was."""
        return Fraction(-1) if self.moment is None else Fraction(self.moment.clock.value)

    @property
    def _looked_at(self) -> tuple[Past, ...]:
        """Return all checkpoints that were dealt with."""
        journal = None if self.moment is None else self.moment.journal
        return (*self.skipped, *(() if journal is None else (*journal.folded, *journal.skipped)))

    def _examine(self) -> Seen:
        """Read the headers of what is there. An error of what still changes is none yet."""
        self.unsettled = None
        if self.moment is not None:
            self.lookout.options = replace(self.asked.opened, epochs_from_zero=self.moment.journal.epochs_from_zero)
        try:
            seen = self.lookout.examine()
        except (CheckpointError, RunError) as problem:
            seen = Seen(None, (), problem)
        if seen.problem is None or (seen.may_come and not self.asked.waiting.once):
            self.troubled = None
            return seen
        self.troubled = self.troubled or time.monotonic()
        lasts = time.monotonic() - self.troubled >= max(self.asked.waiting.patience, self.asked.waiting.settle)
        quiet = self.lookout.quiet_for(self.asked.path) if self.lookout.table else self.asked.waiting.settle
        if not lasts and (quiet < self.asked.waiting.settle or self.lookout.look()):
            self.unsettled = max(self.asked.waiting.settle - quiet, 0.0)
        elif not seen.may_come or self.moment is None:
            raise seen.problem
        return seen

    def _take(self, seen: Seen) -> None:
        """Fold what is complete, in the order of the clocks."""
        run = seen.run
        if run is None:
            return
        check_no_input(self.asked.published, (file for one in run.checkpoints for file in one.files))
        self.unit = unit = self.unit or self.asked.recipes[0].unit or next(iter(run.units), None)
        if unit is None:
            raise no_clock(run)
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

    def _meet(self, run: Run, checkpoint: Checkpoint, unit: Unit, pending: Sequence[Pending]) -> bool:
        """Deal with a checkpoint, if it is time; return whether those after it may be dealt with, too."""
        if self._is_known(checkpoint):
            return True
        asked, waiting = self.asked, self.asked.waiting
        clock = checkpoint.clock(unit)
        if clock is None:
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
        except CheckpointError:
            if self.lookout.is_there(checkpoint):
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
        if self.sizes is None:
            self.sizes = sizes_for(self.asked, made)
        self.moment = update(
            self.asked.folder, self.moment, replace(made, journal=journal), self.sizes, self.lookout.check_there
        )
        self.skipped = []
        self.waiting_list.written_down()
        drop_older(self.asked.folder, self.moment.folder)
        self.due = self._is_due()

    def _is_due(self) -> bool:
        """Return whether the averages are to be written now."""
        if self.moment is None or self.shown == self.moment.clock:
            return False
        return self.shown is None or is_due(self.asked.publish_every, self.moment, self.shown)

    def _reaches(self, checkpoint: Checkpoint) -> bool:
        until = self.asked.waiting.until
        return until is not None and (checkpoint.clock(until.unit) or 0) >= until.value
