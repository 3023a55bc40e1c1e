"""The loop of a watch: look, take in what has come, publish; until the end."""

from __future__ import annotations

import time
from dataclasses import replace

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, RunError
from ema_cli.job import Job
from ema_cli.law.time import Time
from ema_cli.storage.local_file import close_idle_files
from ema_cli.watching.asked import Asked
from ema_cli.watching.intake import Intake
from ema_cli.watching.looking import Lookout, Seen
from ema_cli.watching.moments import drop_older, go_back, kept_in, newest_moment
from ema_cli.watching.multiples import is_due
from ema_cli.watching.publishing import is_half_replaced, is_watched, job_of, publish, published_clock
from ema_cli.watching.telling import Listener, Watched
from ema_cli.writing.replacing import check_target

_LEAST_SLEEP = 0.01


@dataclass(slots=True)
class Loop:
    """What is known while it runs.

    Attributes:
        intake: what is known of the checkpoints.
        shown: the clock of the averages that are published.
        job: what was published last.
        begun: whether it is known that this output is to be written.
        troubled: since when the folder has been no run; a log that grows in it hides that nothing else changes.
    """

    asked: Asked
    listener: Listener
    lookout: Lookout
    intake: Intake
    shown: Time | None = None
    job: Job | None = None
    begun: bool = False
    troubled: float | None = None

    def begin(self) -> None:
        """Go on where the last watch ended."""
        asked = self.asked
        if asked.restart_from is not None:
            for path in go_back(asked.folder, asked.restart_from):
                self.listener.told(f"given up, and kept as {path}: remove it when nobody needs it")
        kept_in(asked.folder).remove_litter()
        moment = newest_moment(asked.folder, asked.what())
        if moment is None:
            check_target(asked.published, [], force=asked.force)
            self.begun = True
            return
        self.intake.go_on_from(moment)
        drop_older(asked.folder, moment.folder)
        self.job = job = job_of(asked, moment)
        self.shown = published_clock(job)
        if not is_watched(job):  # as where somebody has put something else there
            check_target(asked.published, [], force=asked.force or is_half_replaced(job))
        self.begun = True
        if self._is_due():
            self.publish()

    def run(self) -> None:
        """Look and fold until the end."""
        waiting, intake, again = self.asked.waiting, self.intake, False
        while True:
            if self.lookout.look() or again:
                intake.take(self._examine())
                close_idle_files()
                if self._is_due() and not intake.over:
                    self.publish()
            if intake.over or (waiting.once and intake.unsettled is None):
                if not intake.over:
                    intake.waiting_list.tell_first()
                return
            self.listener.waiting(None if intake.moment is None else intake.moment.clock)
            soon = waiting.every if intake.unsettled is None else max(intake.unsettled, _LEAST_SLEEP)
            time.sleep(min(waiting.every, soon))
            again = intake.unsettled is not None or intake.waiting_list.is_over_for_any()

    def publish(self) -> None:
        """Write the averages, unless those that are there are of this moment."""
        moment = self.intake.moment
        if moment is None or self.shown == moment.clock:
            return
        began = time.monotonic()
        kept_in(self.asked.folder).check_held()
        self.job = publish(self.asked, moment)
        self.shown = moment.clock
        self.listener.published(self.shown, time.monotonic() - began, self.job)

    def recover(self) -> None:
        """Publish what is folded, wherever the loop was ended; nothing where it had not begun."""
        if self.begun:
            self.intake.moment = newest_moment(self.asked.folder, self.asked.what())
            self.publish()

    def result(self) -> Watched:
        """Return what was done."""
        moment = self.intake.moment
        journal = None if moment is None else moment.journal
        return Watched(
            self.asked.target if self.job is None else self.job.target,
            None if moment is None else moment.clock,
            0 if journal is None else len(journal.folded),
            tuple(self.intake.entered),
            (*(() if journal is None else journal.gaps), *self.intake.waiting_list.missed),
            self.job,
        )

    def _examine(self) -> Seen:
        """Read the headers of what is there. An error of what still changes is none yet."""
        self.intake.unsettled = None
        if self.intake.moment is not None:
            self.lookout.options = replace(
                self.asked.opened, epochs_from_zero=self.intake.moment.journal.epochs_from_zero
            )
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
            self.intake.unsettled = max(self.asked.waiting.settle - quiet, 0.0)
        elif not seen.may_come or self.intake.moment is None:
            raise seen.problem
        return seen

    def _is_due(self) -> bool:
        """Return whether the averages are to be written now."""
        moment = self.intake.moment
        if moment is None or self.shown == moment.clock:
            return False
        return self.shown is None or is_due(self.asked.publish_every, moment, self.shown)
