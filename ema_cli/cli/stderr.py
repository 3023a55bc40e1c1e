"""Lines for people on stderr: errors, warnings, progress. Rich is loaded only where a terminal can show more than text.

Names come from files nobody vouches for: they are shown through `printable`, never as markup.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ema_cli.cli.github import annotate
from ema_cli.errors import EmaError, at_terminal, printable
from ema_cli.system.progress import ProgressCallback
from ema_cli.text import size

_PLAIN_SECONDS = 30
_FORCED = ("FORCE_COLOR", "TTY_COMPATIBLE")  # rich takes a pipe for a terminal where these say so


def error(problem: EmaError) -> None:
    """Print what is wrong, and what to do."""
    message, hint = problem.message(at_terminal), problem.advice(at_terminal)
    _print(message, label="error: ", style="bold red")
    if hint:
        _print(hint, label="hint:  ", style="bold")
    annotate("error", message, hint)


def warnings(messages: Sequence[str]) -> None:
    """Print what a user should know."""
    for message in messages:
        _print(printable(message), label="warning: ", style="yellow")
        annotate("warning", message)


def lines(texts: Sequence[str]) -> None:
    """Print texts, each on a line of its own."""
    for text in texts:
        _print(printable(text))


def _print(text: str, *, label: str = "", style: str = "") -> None:
    """Print a line on stderr, with a label before it in a style."""
    if sys.stderr is None:  # closed by the caller
        return
    if sys.stderr.isatty() or any(name in os.environ for name in _FORCED):
        from ema_cli.cli.rich_console import print_labelled

        print_labelled(label, style, text)
    else:
        sys.stderr.write(f"{label}{text}\n")
        sys.stderr.flush()


@contextmanager
def progress(doing: str) -> Iterator[ProgressCallback]:
    """Yield a function of (bytes done, bytes in all): a bar on a terminal, elsewhere a line now and then."""
    if not sys.stderr.isatty():
        yield _plain_progress(doing)
        return
    from ema_cli.cli.rich_console import progress_bar

    with progress_bar(doing) as report:
        yield report


def _plain_progress(doing: str) -> ProgressCallback:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS and done:
            last = now
            left = (total - done) * (now - began) / done
            rate = size(done / (now - began))
            lines([f"{doing}: {size(done)} of {size(total)}, {rate}/s, {left:.0f} s left"])

    return report
