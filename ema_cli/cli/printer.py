"""Printers: a command gives its printer all that there is to show, and the printer decides what is printed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.errors import EmaError
from ema_cli.system.progress import ProgressCallback

if TYPE_CHECKING:  # they load what only some commands need
    from ema_cli.cli.outcomes import Averaged, Candidates, DryRun, Page
    from ema_cli.cli.views import Inspection
    from ema_cli.comparing.comparison import Comparison
    from ema_cli.job import Job
    from ema_cli.law.time import Time
    from ema_cli.release.verify import Verified
    from ema_cli.tuning.results import Result
    from ema_cli.tuning.tune import Tuned
    from ema_cli.watching.telling import Entered, Watched


class Printer(ABC):
    """Where the outcome of a command goes.

    Args:
        command: the name of the command.
        summary: the file that gets what was averaged, or why nothing was, as Markdown.
    """

    def __init__(self, command: str, summary: Path | None = None) -> None:
        self.command = command
        self.summary = summary

    @contextmanager
    def summarized(self) -> Iterator[None]:
        """Check the file of the summary, and append to it why the work inside fails, if it does."""
        if self.summary is None:
            yield
            return
        from ema_cli.report.markdown import check_summary, failures_appended

        check_summary(self.summary)
        with failures_appended(self.summary):
            yield

    def check_summary(self, job: Job) -> None:
        """Check that the file of the summary is none of the outputs, and no input."""
        if self.summary is not None:
            from ema_cli.report.markdown import check_summary

            inputs = [checkpoint.path for checkpoint in job.plans[0].run.checkpoints]
            check_summary(self.summary, job.target, inputs)

    def averaged(self, averaged: Averaged) -> None:
        """Show what was averaged, and append it to the summary."""
        result = averaged.result
        if self.summary is not None and (result.part is None or result.part.published):
            from ema_cli.report.markdown import append, summary_text

            paths = [output.target.path for output in result.outputs]
            append(self.summary, summary_text(list(zip(paths, result.manifests, strict=True))))
        self.show_average(averaged)

    @abstractmethod
    def progress(self, doing: str) -> AbstractContextManager[ProgressCallback]:
        """Return a context that gives the callback of a long task, which is `doing` something."""

    @abstractmethod
    def inspected(self, inspection: Inspection) -> None:
        """Show a run or a checkpoint, and the error of a gate, if any."""

    @abstractmethod
    def planned(self, dry: DryRun) -> None:
        """Show what an average would be."""

    @abstractmethod
    def averaging(self, work: DryRun) -> None:
        """Show what to know before the work begins."""

    @abstractmethod
    def show_average(self, averaged: Averaged) -> None:
        """Show what was averaged."""

    @abstractmethod
    def tuning(self, candidates: Candidates) -> None:
        """Show what will be evaluated."""

    @abstractmethod
    def tuning_planned(self, candidates: Candidates) -> None:
        """Show what would be evaluated."""

    @abstractmethod
    def evaluated(self, result: Result) -> None:
        """Show the result of a candidate, as it comes."""

    @abstractmethod
    def tuned(self, tuned: Tuned) -> None:
        """Show all results, and the average that was written, or why there is none."""

    @abstractmethod
    def entered(self, entered: Entered) -> None:
        """Show what became of a checkpoint that `watch` has met."""

    @abstractmethod
    def refreshed(self, clock: Time, seconds: float, job: Job) -> None:
        """Show that the averages were written over again, as they are at a clock."""

    @abstractmethod
    def missed(self, text: str) -> None:
        """Show what was missed, in words."""

    @abstractmethod
    def waiting(self, clock: Time | None) -> None:
        """Show that nothing happens; the averages are at this clock."""

    @abstractmethod
    def watched(self, watched: Watched) -> None:
        """Show what was done in all, and where the averages are."""

    @abstractmethod
    def compared(self, comparison: Comparison) -> None:
        """Show how far two checkpoints are apart."""

    @abstractmethod
    def reported(self, page: Page) -> None:
        """Show where a page was written."""

    @abstractmethod
    def verified(self, averages: Sequence[Verified], problem: EmaError | None) -> None:
        """Show whether averages hold, and the error if one does not."""
