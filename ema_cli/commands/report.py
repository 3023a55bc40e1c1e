"""ema-cli report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ema_cli import interrupts
from ema_cli.commands.shared import print_json
from ema_cli.options import READ, WRITE, AsJson, Threads, Version, check_threads

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
    from ema_cli import render, words
    from ema_cli import report as reports
    from ema_cli.posthoc import default_threads
    from ema_cli.report_page import make_page

    target = reports.report_target(average, output)
    manifest = reports.read_output(average)
    reports.check_report_target(target, average, [], force=force)
    distances = None
    checkpoints: list[Checkpoint] = []
    with interrupts.unwinding(), render.progress(quiet=quiet or as_json, doing="measuring") as told:
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
        render.warnings([f"{against}: does not hold {words.some(missing)}"] if missing else [])
        render.lines([f"wrote {words.size(nbytes)}"])
    return typer.echo(target.path.as_posix())
