"""ema-cli report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ema_cli.cli.commands.shared import print_json
from ema_cli.cli.options import READ, WRITE, AsJson, Threads, Version, check_threads
from ema_cli.system import signals

if TYPE_CHECKING:
    from ema_cli.checkpoint import Checkpoint

EXAMPLES = """\
Example: a page about an average, with its distance from each checkpoint

  ema-cli report release.safetensors --against ckpts/ -o report.html

Without --against no checkpoint is read: weights, files and their sums are those of the manifest."""


def report(
    average: Annotated[
        Path, typer.Argument(readable=False, metavar="OUT", help="What ema-cli average wrote, with its manifest.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPTS",
            help="The folder of the checkpoints that were averaged: measure how far the average is from each.",
            rich_help_panel=READ,
        ),
    ] = None,
    threads: Threads = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="The page to write. Default: OUT.html.", rich_help_panel=WRITE
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace a page that is there.", rich_help_panel=WRITE)
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the page's path only.", rich_help_panel=WRITE)
    ] = False,
    version: Version = False,
) -> None:
    """Write an HTML page about an average: weights over time, distances by layer, files; one file, no network."""
    check_threads(threads)
    from ema_cli.cli import terminal
    from ema_cli.release.published import read_output
    from ema_cli.report import distances as reports
    from ema_cli.report.page import make_page
    from ema_cli.system.processors import default_threads
    from ema_cli.text import size, some

    target = reports.report_target(average, output)
    manifest = read_output(average)
    reports.check_report_target(target, average, [], force=force)
    distances = None
    checkpoints: list[Checkpoint] = []
    with signals.unwinding(), terminal.progress(quiet=quiet or as_json, doing="measuring") as told:
        if against is not None:
            distances, checkpoints = reports.measure_distances(
                average, manifest, against, threads=threads or default_threads(), report=told
            )
        page = make_page(average.absolute().name, manifest, distances)
        reports.check_report_target(target, average, checkpoints, force=force)
        nbytes = reports.write_page(target, page, force=force)
    missing = list(distances.missing) if distances else []
    if as_json:
        return print_json("report", {"written": {"path": target.path.as_posix(), "bytes": nbytes}, "missing": missing})
    if not quiet:
        terminal.warnings([f"{against}: does not hold {some(missing)}"] if missing else [])
        terminal.lines([f"wrote {size(nbytes)}"])
    return typer.echo(target.path.as_posix())
