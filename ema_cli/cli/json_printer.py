"""The printer of --json: one object on stdout, and nothing else anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from ema_cli.cli import comparison_facts, json_facts, tune_facts, verify_facts
from ema_cli.cli.printer import Printer
from ema_cli.cli.sentences import all_warnings
from ema_cli.cli.stdout import print_json
from ema_cli.errors import EmaError
from ema_cli.system.progress import ProgressCallback, no_progress

if TYPE_CHECKING:  # each command loads what it shows
    from ema_cli.cli.outcomes import Averaged, Candidates, DryRun, Page
    from ema_cli.cli.views import Inspection
    from ema_cli.comparing.comparison import Comparison
    from ema_cli.job import Job
    from ema_cli.law.time import Time
    from ema_cli.release.verify import Verified
    from ema_cli.runs.warnings import Remarks
    from ema_cli.tuning.results import Result
    from ema_cli.tuning.tune import Tuned
    from ema_cli.watching.telling import Entered, Watched


class JsonPrinter(Printer):
    """Print the outcome of a command as one JSON object."""

    _remarks: Remarks

    def progress(self, doing: str) -> AbstractContextManager[ProgressCallback]:
        """Show no progress."""
        return nullcontext(no_progress)

    def inspected(self, inspection: Inspection) -> None:
        """Print a run, its plans, and the error of a gate."""
        warnings = [*inspection.remarks.warnings, *all_warnings(inspection.plans)]
        print_json(self.command, json_facts.inspection_facts(inspection), warnings=warnings, problem=inspection.failed)

    def planned(self, dry: DryRun) -> None:
        """Print the plans, and what would be written."""
        warnings = [*dry.remarks.warnings, *all_warnings(dry.job.plans)]
        print_json(self.command, json_facts.dry_run_facts(dry), warnings=warnings)

    def averaging(self, work: DryRun) -> None:
        """Print nothing yet."""

    def show_average(self, averaged: Averaged) -> None:
        """Print the plans, and what was written."""
        warnings = [*averaged.remarks.warnings, *averaged.result.warnings]
        annotated = [*warnings, *all_warnings(averaged.plans)]
        print_json(self.command, json_facts.averaged_facts(averaged, warnings), warnings=annotated)

    def tuning(self, candidates: Candidates) -> None:
        """Print nothing yet, but keep what is said of the run."""
        self._remarks = candidates.remarks

    def tuning_planned(self, candidates: Candidates) -> None:
        """Print the plans, and what room they would take."""
        warnings = [*candidates.remarks.warnings, *all_warnings(candidates.plans)]
        print_json(self.command, tune_facts.candidates_facts(candidates), warnings=warnings)

    def evaluated(self, result: Result) -> None:
        """Print nothing yet."""

    def tuned(self, tuned: Tuned) -> None:
        """Print all results."""
        warnings = [*self._remarks.warnings, *tuned.remarks.warnings, *all_warnings([tuned.plan] if tuned.plan else [])]
        facts = tune_facts.tuned_facts(tuned, self._remarks)
        print_json(self.command, facts, warnings=warnings, problem=tuned.problem)

    def entered(self, entered: Entered) -> None:
        """Print nothing yet."""

    def refreshed(self, clock: Time, seconds: float, job: Job) -> None:
        """Print nothing yet."""

    def missed(self, text: str) -> None:
        """Print nothing yet."""

    def waiting(self, clock: Time | None) -> None:
        """Print nothing yet."""

    def watched(self, watched: Watched) -> None:
        """Print what was done in all."""
        print_json(self.command, tune_facts.watched_facts(watched), warnings=watched.gaps)

    def compared(self, comparison: Comparison) -> None:
        """Print the distance of each tensor and each layer."""
        print_json(self.command, comparison_facts.comparison_facts(comparison), warnings=comparison.warnings)

    def reported(self, page: Page) -> None:
        """Print where the page is."""
        print_json(self.command, verify_facts.page_facts(page))

    def verified(self, averages: Sequence[Verified], problem: EmaError | None) -> None:
        """Print what was checked, and what does not hold."""
        outputs = [verify_facts.verified_facts(verified) for verified in averages]
        print_json(self.command, {"outputs": outputs}, problem=problem)
