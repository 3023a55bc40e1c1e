"""ema-cli verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from ema_cli.cli import requests, sentences, terminal
from ema_cli.cli.command_line import VerifyOptions
from ema_cli.cli.commands.shared import error_facts, print_json
from ema_cli.errors import UsageError, VerificationError, option
from ema_cli.release.published import Published, find_averages
from ema_cli.release.verify import Verified, verified_facts, verify
from ema_cli.storage.location import location
from ema_cli.system.processors import default_threads

_HINT = "what does not hold must not be used; bring back the files as they were written, or average anew"


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """The averages that `verify` checks, and the folders of the checkpoints with which it makes them again."""

    outputs: tuple[Path, ...]
    against: tuple[Path, ...]
    sample: bool
    threads: int

    @classmethod
    def resolve(cls, options: VerifyOptions) -> VerifyRequest:
        """Read the options, and check what goes together.

        Raises:
            UsageError: for a value that makes no sense, or a folder that does not exist.
        """
        requests.check_threads(options.threads)
        if options.sample and not options.against:
            raise UsageError(
                "of what?",
                option="sample",
                hint=f"say where the checkpoints are: {option('against')} ckpts/ {option('sample')}",
            )
        missing = next((path for path in options.against if not location(path).info().exists), None)
        if missing is not None:
            raise UsageError(f"{missing} does not exist", option="against")
        if not options.outputs:
            raise UsageError("which average?", hint="name it: ema-cli verify release.safetensors")
        return cls(options.outputs, options.against, options.sample, options.threads or default_threads())


def run(options: VerifyOptions) -> int:
    """Print of each average whether it holds."""
    request = VerifyRequest.resolve(options)
    told = [
        verified_facts(_verify(request, published, quiet=options.as_json))
        for published in find_averages(request.outputs)
    ]
    holds = all(each["ok"] for each in told)
    problem = None if holds else VerificationError(sentences.not_verified(told), hint=_HINT)
    if options.as_json:
        print_json("verify", {"outputs": told, **({"error": error_facts(problem)} if problem else {})})
        return problem.exit_code if problem else 0
    for each in told:
        typer.echo(sentences.verified_line(each))
        if sentences.problem_count(told) > 1:  # a single one is the error
            terminal.lines(sentences.problem_lines(each))
    if problem is not None:
        raise problem
    return 0


def _verify(request: VerifyRequest, published: Published, *, quiet: bool) -> Verified:
    with terminal.progress(quiet=quiet, doing="verifying") as progress:
        found = verify(published, threads=request.threads, report=progress)
    if request.against:
        from ema_cli.release.recompute import verify_against  # which loads numpy

        with terminal.progress(quiet=quiet) as progress:
            found = verify_against(
                found, request.against, sample=request.sample, threads=request.threads, report=progress
            )
    return found
