"""ema-cli report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from ema_cli.checkpoint import Checkpoint
from ema_cli.cli import requests, terminal
from ema_cli.cli.command_line import ReportOptions
from ema_cli.cli.commands.shared import print_json
from ema_cli.release.published import read_output
from ema_cli.report import distances as reports
from ema_cli.report.page import make_page
from ema_cli.system import signals
from ema_cli.system.processors import default_threads
from ema_cli.text import size, some


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """The average that `report` tells of, the folder of its checkpoints, and where the page goes."""

    average: Path
    against: Path | None
    output: Path | None
    threads: int
    force: bool

    @classmethod
    def resolve(cls, options: ReportOptions) -> ReportRequest:
        """Read the options.

        Raises:
            UsageError: for a value that makes no sense.
        """
        requests.check_threads(options.threads)
        threads = options.threads or default_threads()
        return cls(options.average, options.against, options.output, threads, options.force)


def run(options: ReportOptions) -> None:
    """Write a page about an average, and print where."""
    request = ReportRequest.resolve(options)
    target = reports.report_target(request.average, request.output)
    manifest = read_output(request.average)
    reports.check_report_target(target, request.average, [], force=request.force)
    distances = None
    checkpoints: list[Checkpoint] = []
    silent = options.quiet or options.as_json
    with signals.unwinding(), terminal.progress(quiet=silent, doing="measuring") as progress:
        if request.against is not None:
            distances, checkpoints = reports.measure_distances(
                request.average, manifest, request.against, threads=request.threads, report=progress
            )
        page = make_page(request.average.absolute().name, manifest, distances)
        reports.check_report_target(target, request.average, checkpoints, force=request.force)
        nbytes = reports.write_page(target, page, force=request.force)
    missing = list(distances.missing) if distances else []
    if options.as_json:
        return print_json("report", {"written": {"path": target.path.as_posix(), "bytes": nbytes}, "missing": missing})
    if not options.quiet:
        terminal.warnings([f"{request.against}: does not hold {some(missing)}"] if missing else [])
        terminal.lines([f"wrote {size(nbytes)}"])
    return typer.echo(target.path.as_posix())
