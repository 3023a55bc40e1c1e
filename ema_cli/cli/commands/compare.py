"""ema-cli compare."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ema_cli.cli.commands.shared import print_json
from ema_cli.cli.options import (
    AsJson,
    Component,
    KeepPrefix,
    Key,
    Threads,
    Version,
    WeightsChoice,
    check_threads,
    parse_read_options,
)
from ema_cli.errors import RunError, UsageError

if TYPE_CHECKING:
    from ema_cli.checkpoint import Checkpoint
    from ema_cli.formats.options import ReadOptions

EXAMPLES = """\
Example: how far an average is from the newest checkpoint

  ema-cli compare release.safetensors ckpts/checkpoint-3000

Both are read once, and nothing is written."""


def compare(
    a: Annotated[
        Path, typer.Argument(readable=False, metavar="A", help="A checkpoint, or an average: a file or a folder.")
    ],
    b: Annotated[Path, typer.Argument(readable=False, metavar="B", help="What it is compared with.")],
    key: Key = None,
    weights: WeightsChoice = None,
    component: Component = None,
    keep_prefix: KeepPrefix = False,
    threads: Threads = None,
    as_json: AsJson = False,
    version: Version = False,
) -> None:
    """Show how far apart two checkpoints are, by layer and in total: distance, cosine, what is equal to the byte."""
    options = parse_read_options(key, weights, component, keep_prefix, None)
    check_threads(threads)
    from ema_cli.cli import terminal

    one, other = _open(a, b, options)
    from ema_cli.comparing.comparison import compare as compare_checkpoints
    from ema_cli.comparing.comparison import comparison_facts
    from ema_cli.system.processors import default_threads

    with terminal.progress(quiet=as_json, doing="comparing") as report:
        found = compare_checkpoints(one, other, threads=threads or default_threads(), report=report)
    told = comparison_facts(found)
    if as_json:
        return print_json("compare", told)
    return terminal.comparison_report(told)


def _open(a: Path, b: Path, options: ReadOptions) -> list[Checkpoint]:
    """Open both. Of the two, only one need have something to choose from, as --weights does."""
    opened: list[Checkpoint] = []
    problems: list[RunError] = []
    for path in (a, b):
        try:
            opened.append(_open_one(path, options))
        except RunError as problem:
            problems.append(problem)
            if options.weights is None or len(problems) > 1:
                raise problems[0] from None
            opened.append(_open_one(path, replace(options, weights=None)))
    return opened


def _open_one(path: Path, options: ReadOptions) -> Checkpoint:
    """Open a checkpoint, averages too: nothing is averaged here. A folder may hold just one."""
    from ema_cli.formats import is_checkpoint_folder, open_checkpoint

    if not os.path.lexists(path):
        raise UsageError("does not exist", subject=path)
    if path.is_dir() and not is_checkpoint_folder(path):
        from ema_cli.runs.run import open_run

        found = open_run([path], options=options).checkpoints
        if len(found) > 1:
            raise UsageError(
                f"holds {len(found)} checkpoints", subject=path, hint=f"name one of them: {found[-1].path}"
            )
        path = found[0].path
    return replace(open_checkpoint(path, options), name=path.as_posix())
