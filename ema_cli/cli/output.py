"""Where the outcome of a command goes: for people, or as JSON; with annotations for a job, and a summary in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.cli import stderr
from ema_cli.cli.stdout import print_json
from ema_cli.errors import EmaError

if TYPE_CHECKING:  # an error that comes before the command needs none
    from ema_cli.cli.sink import Sink


def make_sink(command: str, *, as_json: bool, quiet: bool = False, summary: Path | None = None) -> Sink:
    """Return the sink that the options of a command choose."""
    if as_json:
        from ema_cli.cli.json_sink import JsonSink

        return JsonSink(command, summary)
    from ema_cli.cli.text_sink import TextSink

    return TextSink(summary, quiet=quiet)


def fail(problem: EmaError, *, command: str | None, as_json: bool) -> None:
    """Print an error instead of an outcome: as JSON on stdout, or in words on stderr."""
    if as_json:
        print_json(command, {}, problem=problem)
    else:
        stderr.error(problem)
