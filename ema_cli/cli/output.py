"""Where the outcome of a command goes: for people, or as JSON; with annotations for a job, and a summary in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.cli import stderr
from ema_cli.cli.stdout import print_json
from ema_cli.errors import EmaError

if TYPE_CHECKING:  # an error that comes before the command needs none
    from ema_cli.cli.printer import Printer


def make_printer(command: str, *, as_json: bool, quiet: bool = False, summary: Path | None = None) -> Printer:
    """Return the printer that the options of a command choose."""
    if as_json:
        from ema_cli.cli.json_printer import JsonPrinter

        return JsonPrinter(command, summary)
    from ema_cli.cli.text_printer import TextPrinter

    return TextPrinter(command, summary, quiet=quiet)


def fail(problem: EmaError, *, command: str | None, as_json: bool) -> None:
    """Print an error instead of an outcome: as JSON on stdout, or in words on stderr."""
    if as_json:
        print_json(command, {}, problem=problem)
    else:
        stderr.error(problem, command)
