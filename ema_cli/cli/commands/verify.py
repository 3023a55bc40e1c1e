"""ema-cli verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ema_cli.cli.commands.shared import error_facts, print_json
from ema_cli.cli.options import READ, AsJson, Threads, Version, check_threads
from ema_cli.errors import UsageError, VerificationError, option

EXAMPLES = """\
Examples: by sums and manifest; averaged once more, too

  ema-cli verify release.safetensors
  ema-cli verify release.safetensors --against ckpts/

Nothing is written. Sums alone: sha256sum -c release.safetensors.sha256"""
_HINT = "what does not hold must not be used; bring back the files as they were written, or average anew"


def verify(
    outputs: Annotated[
        list[Path] | None,
        typer.Argument(
            readable=False,
            metavar="OUT...",
            help="What ema-cli average wrote: a file, a folder, or a folder of several.",
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CKPTS",
            help="Average the checkpoints in this folder once more, as the manifest says, and compare all bytes. "
            "Repeatable.",
            rich_help_panel=READ,
        ),
    ] = None,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample",
            help="With --against: only the first 65,536 elements of each tensor. Default: all of them.",
            rich_help_panel=READ,
        ),
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    version: Version = False,
) -> None:
    """Check averages by their sums and manifests, or by their checkpoints, too. Exit 6 where one does not hold."""
    check_threads(threads)
    if sample and not against:
        raise UsageError(
            "of what?",
            option="sample",
            hint=f"say where the checkpoints are: {option('against')} ckpts/ {option('sample')}",
        )
    missing = next((path for path in against or () if not path.exists()), None)
    if missing is not None:
        raise UsageError(f"{missing} does not exist", option="against")
    if not outputs:
        raise UsageError("which average?", hint="name it: ema-cli verify release.safetensors")
    from ema_cli.cli import sentences, terminal
    from ema_cli.release.published import find_averages
    from ema_cli.release.verify import verified_facts
    from ema_cli.release.verify import verify as verify_average
    from ema_cli.system.processors import default_threads

    threads = threads or default_threads()
    told = []
    for published in find_averages(outputs):
        with terminal.progress(quiet=as_json, doing="verifying") as report:
            found = verify_average(published, threads=threads, report=report)
        if against:
            from ema_cli.release.recompute import verify_against

            with terminal.progress(quiet=as_json) as report:
                found = verify_against(found, against, sample=sample, threads=threads, report=report)
        told.append(verified_facts(found))
    holds = all(each["ok"] for each in told)
    problem = None if holds else VerificationError(sentences.not_verified(told), hint=_HINT)
    if as_json:
        print_json("verify", {"outputs": told, **({"error": error_facts(problem)} if problem else {})})
        raise typer.Exit(problem.exit_code if problem else 0)
    for each in told:
        typer.echo(sentences.verified_line(each))
        if sentences.problem_count(told) > 1:  # a single one is the error
            terminal.lines(sentences.problem_lines(each))
    if problem is not None:
        raise problem
