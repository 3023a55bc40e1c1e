"""Lines for people on stderr: errors, warnings, progress. Only a bar, for what takes a while, needs rich.

Names come from files nobody vouches for: they are shown through `printable`, so that none steers a terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ema_cli.cli.github import annotate_error, annotate_warnings
from ema_cli.cli.spelling import spelling_of
from ema_cli.errors import EmaError, printable
from ema_cli.system import signals
from ema_cli.system.progress import ProgressCallback
from ema_cli.text import size

_PLAIN_SECONDS = 30
_SHORT_SECONDS = 0.5  # what takes no longer needs no bar
_has_status = False
_RED, _YELLOW, _BOLD = "31", "33", "1"  # of a terminal's codes


def error(problem: EmaError, command: str | None) -> None:
    """Print what is wrong with what a command was to do, and what to do."""
    spelling = spelling_of(command)
    _print(problem.message(spelling), label="error: ", codes=(_BOLD, _RED))
    hint = problem.advice(spelling)
    if hint:
        _print(hint, label="hint:  ", codes=(_BOLD,))
    annotate_error(problem, spelling)


def warnings(messages: Sequence[str]) -> None:
    """Print what a user should know."""
    for message in messages:
        _print(printable(message), label="warning: ", codes=(_YELLOW,))
        annotate_warnings([message])


def notes(texts: Sequence[str]) -> None:
    """Print what is worth knowing and no reason to warn."""
    lines([f"note: {text}" for text in texts])


def last_words(number: int) -> None:
    """Print that the signal `number` ended the program, and whether something was written."""
    lines(signals.last_words(number).splitlines())


def status(text: str) -> None:
    """Show on a terminal what goes on, in a line that the next line takes the place of; nothing elsewhere."""
    global _has_status
    if sys.stderr is None or not sys.stderr.isatty():
        return
    sys.stderr.write(f"\r\x1b[K{printable(text)}")
    sys.stderr.flush()
    _has_status = True


def lines(texts: Sequence[str]) -> None:
    """Print texts, each on a line of its own."""
    for text in texts:
        _print(printable(text))


def _print(text: str, *, label: str = "", codes: Sequence[str] = ()) -> None:
    """Print a line, with a label before it that a terminal shows with these codes."""
    if sys.stderr is None:  # closed by the caller
        return
    _end_status()
    codes = _shown(codes)
    styled = f"\x1b[{';'.join(codes)}m{label}\x1b[0m" if codes else label
    sys.stderr.write(f"{styled}{text}\n")
    sys.stderr.flush()


def _end_status() -> None:
    global _has_status
    if _has_status:
        sys.stderr.write("\r\x1b[K")
        _has_status = False


def _shown(codes: Sequence[str]) -> Sequence[str]:
    """Return the codes that stderr can show: none in a pipe, no colour under NO_COLOR. As rich decides it."""
    forced = os.environ.get("FORCE_COLOR")
    is_terminal = sys.stderr.isatty() if forced is None else forced != ""
    if not is_terminal or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return ()
    return [code for code in codes if code == _BOLD] if os.environ.get("NO_COLOR") else codes


@contextmanager
def progress(doing: str) -> Iterator[ProgressCallback]:
    """Yield a function of (bytes done, bytes in all): a bar on a terminal, elsewhere a line now and then."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _plain_progress(doing)
        return
    began = time.monotonic()
    with ExitStack() as stack:
        bar: ProgressCallback | None = None

        def report(done: int, total: int) -> None:
            nonlocal bar
            if bar is None and time.monotonic() - began >= _SHORT_SECONDS:
                from ema_cli.cli.rich_console import progress_bar

                bar = stack.enter_context(progress_bar(doing))
            if bar is not None:
                bar(done, total)

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


def ask_password(question: str) -> str:
    """Ask for a password on the terminal; return none where there is no terminal."""
    from getpass import getpass  # which few runs need

    return getpass(printable(question)) if sys.stdin is not None and sys.stdin.isatty() else ""
