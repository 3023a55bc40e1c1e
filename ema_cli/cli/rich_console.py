"""Rich, as we use it: a console for stdout or stderr, and a bar of progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from ema_cli.errors import printable
from ema_cli.system.progress import ProgressCallback

_PIPE_WIDTH = 240  # wide enough that no row is folded where a program reads it


class _Console(Console):
    """A console that leaves a closed pipe to the error boundary; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr: plain in a pipe, without colour under NO_COLOR."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return _Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def shown(text: object, style: str = "") -> Text:
    """Return a text for a console. Every text passes here, as most hold something from a file: see `printable`."""
    return Text(printable(text), style)


@contextmanager
def progress_bar(doing: str) -> Iterator[ProgressCallback]:
    """Yield a function of (bytes done, bytes in all), which moves a bar."""
    from rich.progress import (  # here, as it is only for this
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
