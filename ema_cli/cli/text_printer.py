"""The printer for people: the outcome on stdout, what else there is to know on stderr, unless --quiet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.cli import sentences, stderr, tune_sentences, verify_sentences, watch_sentences
from ema_cli.cli.github import annotate_warnings
from ema_cli.cli.printer import Printer
from ema_cli.cli.stdout import print_line
from ema_cli.errors import EmaError
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.text import size, some

if TYPE_CHECKING:  # each command loads what it shows
    from ema_cli.cli.outcomes import Averaged, Candidates, DryRun, Page
    from ema_cli.cli.views import Inspection
    from ema_cli.comparing.comparison import Comparison
    from ema_cli.job import Job
    from ema_cli.law.time import Time
    from ema_cli.release.verify import Verified
    from ema_cli.tuning.results import Result
    from ema_cli.tuning.tune import Tuned
    from ema_cli.watching.telling import Entered, Watched


class TextPrinter(Printer):
    """Print the outcome of a command for people. What needs tables loads rich, which takes as long as an average."""

    def __init__(self, command: str, summary: Path | None = None, *, quiet: bool = False) -> None:
        super().__init__(command, summary)
        self.quiet = quiet
        self._pace: tune_sentences.Pace | None = None
        self._has_refreshed = False

    def progress(self, doing: str) -> AbstractContextManager[ProgressCallback]:
        """Show a bar on a terminal, elsewhere a line now and then."""
        return nullcontext(no_progress) if self.quiet else stderr.progress(doing)

    def inspected(self, inspection: Inspection) -> None:
        """Print tables of the run, or of its only checkpoint, and the error of a gate."""
        from ema_cli.cli.terminal import print_inspection

        print_inspection(inspection)
        if inspection.failed is not None:
            stderr.error(inspection.failed, self.command)

    def planned(self, dry: DryRun) -> None:
        """Print the plans as tables, and what would be written."""
        from ema_cli.cli.terminal import print_plans

        plans = dry.job.plans
        print_plans(plans, [checkpoint.name for checkpoint in plans[0].run.checkpoints])
        if not self.quiet:
            stderr.warnings(dry.remarks.warnings)
            stderr.notes(dry.remarks.notes)
            stderr.lines([*sentences.pass_lines(dry), sentences.room_line(dry)])
        print_line(sentences.would_line(dry))

    def averaging(self, work: DryRun) -> None:
        """Print the warnings, the notes, and the passes, where there are several."""
        if not self.quiet:
            stderr.warnings([*work.remarks.warnings, *sentences.plan_warnings(work.job.plans)])
            stderr.notes(work.remarks.notes)
            stderr.lines(sentences.pass_lines(work))

    def show_average(self, averaged: Averaged) -> None:
        """Print what was done, and where the average is."""
        plans, result = averaged.plans, averaged.result
        if result.part is not None and not result.part.published:
            if not self.quiet:
                stderr.warnings(result.part.others)
                stderr.lines([sentences.part_line(result, result.part)])
            return
        if not self.quiet:
            stderr.warnings(result.warnings)
            stderr.notes(result.notes)
            several = len(plans) > 1
            annotate_warnings(sentences.all_warnings(plans) if several else [])  # they are on the lines of the plans
            advice = sentences.advice(plans) if several else []
            stderr.lines([*sentences.plan_lines(plans), *advice, sentences.result_line(result)])
        print_line(result.target.path.as_posix())

    def tuning(self, candidates: Candidates) -> None:
        """Print what will be evaluated, and what room it takes."""
        self._pace = tune_sentences.Pace(candidates.count)
        if not self.quiet:
            stderr.warnings(candidates.remarks.warnings)
            stderr.notes(candidates.remarks.notes)
            stderr.lines([tune_sentences.tuning_line(candidates)])

    def tuning_planned(self, candidates: Candidates) -> None:
        """Print the plans as tables, and what room they would take."""
        from ema_cli.cli.terminal import print_plans

        plans = candidates.plans
        print_plans(plans, [checkpoint.name for checkpoint in plans[0].run.checkpoints])
        if not self.quiet:
            stderr.warnings(candidates.remarks.warnings)
            stderr.notes(candidates.remarks.notes)
        print_line(tune_sentences.would_line(candidates))

    def evaluated(self, result: Result) -> None:
        """Print the metric of a candidate, and how long the rest will take."""
        left = "" if self._pace is None else self._pace.after_another()
        if not self.quiet:
            stderr.lines([f"{tune_sentences.result_line(result)}{left}"])

    def tuned(self, tuned: Tuned) -> None:
        """Print a table of all results, and where the best average is; or the error."""
        if not self.quiet:
            from ema_cli.cli.rich_console import console
            from ema_cli.cli.tables import print_results

            print_results(console(stderr=True), tuned)
        if tuned.problem is not None:
            stderr.error(tuned.problem, self.command)
            return
        if not self.quiet:
            stderr.warnings([*sentences.plan_warnings([tuned.plan] if tuned.plan else []), *tuned.remarks.warnings])
            stderr.notes(tuned.remarks.notes)
            stderr.lines([tune_sentences.best_line(tuned)])
        print_line(tuned.target.path.as_posix())

    def entered(self, entered: Entered) -> None:
        """Print what became of a checkpoint."""
        if not self.quiet:
            stderr.lines([watch_sentences.entered_line(entered)])

    def refreshed(self, clock: Time, seconds: float, job: Job) -> None:
        """Print that the averages were written; the first time also what to know of loading them."""
        if self.quiet:
            return
        stderr.lines([watch_sentences.refreshed_line(clock, seconds, job)])
        if not self._has_refreshed:
            stderr.notes(list(dict.fromkeys(note for output in job.outputs for note in output.notes)))
        self._has_refreshed = True

    def missed(self, text: str) -> None:
        """Print a warning."""
        stderr.warnings([text])

    def waiting(self, clock: Time | None) -> None:
        """Show on a terminal that it waits."""
        if not self.quiet:
            stderr.status(watch_sentences.waiting_line(clock))

    def watched(self, watched: Watched) -> None:
        """Print what was done in all, and where the averages are."""
        if not self.quiet:
            stderr.lines([watch_sentences.watched_line(watched)])
        if watched.job is not None:
            print_line(watched.target.path.as_posix())

    def compared(self, comparison: Comparison) -> None:
        """Print a table of distances."""
        from ema_cli.cli.terminal import print_comparison

        print_comparison(comparison)

    def reported(self, page: Page) -> None:
        """Print where the page is."""
        if not self.quiet:
            stderr.warnings([f"{page.against}: does not hold {some(page.missing)}"] if page.missing else [])
            stderr.lines([f"wrote {size(page.nbytes)}"])
        print_line(page.path)

    def verified(self, averages: Sequence[Verified], problem: EmaError | None) -> None:
        """Print a line for each average, its problems, and the error."""
        several = verify_sentences.problem_count(averages) > 1  # a single one is the error
        for verified in averages:
            print_line(verify_sentences.verified_line(verified))
            stderr.lines(verify_sentences.problem_lines(verified) if several else [])
            stderr.notes(verified.notes)
        if problem is not None:
            stderr.error(problem, self.command)
