"""ema-cli report."""

from __future__ import annotations

from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.cli import requests
from ema_cli.cli.command_line import ReportOptions
from ema_cli.cli.outcomes import Page
from ema_cli.cli.output import make_printer
from ema_cli.cli.printer import Printer
from ema_cli.dataclass import dataclass
from ema_cli.release.published import average_at, read_output
from ema_cli.report.distances import check_report_target, measure_distances, report_target, write_page
from ema_cli.report.page import make_page
from ema_cli.system import signals
from ema_cli.system.processors import default_threads


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """The average that `report` tells of, the folders of its checkpoints, and where the page goes."""

    average: Path
    against: tuple[Path, ...]
    output: Path | None
    threads: int
    force: bool

    @classmethod
    def resolve(cls, options: ReportOptions) -> ReportRequest:
        """Read the options.

        Raises:
            UsageError: for a value that makes no sense, and where no average lies.
        """
        requests.check_threads(options.threads)
        threads = options.threads or default_threads()
        return cls(average_at(options.average), options.against, options.output, threads, options.force)


def run(options: ReportOptions) -> None:
    """Write a page about an average, and show where."""
    printer = make_printer("report", as_json=options.as_json, quiet=options.quiet)
    printer.reported(report(ReportRequest.resolve(options), printer))


def report(request: ReportRequest, printer: Printer) -> Page:
    """Write the page that is requested."""
    target = report_target(request.average, request.output)
    manifest = read_output(request.average)
    check_report_target(target, request.average, [], force=request.force)
    distances = None
    checkpoints: list[Checkpoint] = []
    with signals.unwinding(), printer.progress("measuring") as progress:
        if request.against:
            distances, checkpoints = measure_distances(
                request.average, manifest, request.against, threads=request.threads, progress=progress
            )
        page = make_page(request.average.absolute().name, manifest, distances)
        check_report_target(target, request.average, checkpoints, force=request.force)
        nbytes = write_page(target, page, force=request.force)
    missing = tuple(distances.missing) if distances else ()
    return Page(target.path.as_posix(), nbytes, ", ".join(map(str, request.against)), missing)
