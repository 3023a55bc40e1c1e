"""ema-cli compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.cli import requests
from ema_cli.cli.command_line import CompareOptions
from ema_cli.cli.output import make_printer
from ema_cli.comparing.comparison import compare
from ema_cli.dataclass import dataclass
from ema_cli.errors import RunError, UsageError
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.run import read_run
from ema_cli.storage.location import location
from ema_cli.storage.named_paths import check_exists
from ema_cli.system.processors import default_threads


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """The two checkpoints that `compare` reads, and how."""

    a: Path
    b: Path
    options: ReadOptions
    threads: int

    @classmethod
    def resolve(cls, options: CompareOptions) -> CompareRequest:
        """Read the options.

        Raises:
            UsageError: for a value that makes no sense.
        """
        read = requests.read_options(options.model)
        requests.check_threads(options.threads)
        return cls(options.a, options.b, read, options.threads or default_threads())


def run(options: CompareOptions) -> None:
    """Show how far apart two checkpoints are."""
    request = CompareRequest.resolve(options)
    printer = make_printer("compare", as_json=options.as_json)
    one, other = _open(request)
    with printer.progress("comparing") as progress:
        comparison = compare(one, other, threads=request.threads, progress=progress)
    printer.compared(comparison)


def _open(request: CompareRequest) -> list[Checkpoint]:
    """Open both. Of the two, only one need have something to choose from, as --weights does."""
    opened: list[Checkpoint] = []
    problems: list[RunError] = []
    for path in (request.a, request.b):
        try:
            opened.append(_open_one(path, request.options))
        except RunError as problem:
            problems.append(problem)
            if request.options.weights is None or len(problems) > 1:
                raise problems[0] from None
            opened.append(_open_one(path, replace(request.options, weights=None)))
    return opened


def _open_one(path: Path, options: ReadOptions) -> Checkpoint:
    """Open a checkpoint, averages too: nothing is averaged here. A folder may hold just one."""
    check_exists(path, follow=False)
    if location(path).info().is_folder and not is_checkpoint_folder(path):
        checkpoints = read_run([path], OpenOptions(options)).checkpoints
        if len(checkpoints) > 1:
            raise UsageError(
                f"holds {len(checkpoints)} checkpoints",
                subject=path,
                hint=f"name one of them: {checkpoints[-1].path}",
            )
        path = checkpoints[0].path
    return replace(open_checkpoint(path, options), name=path.as_posix())
