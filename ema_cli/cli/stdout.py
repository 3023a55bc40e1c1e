"""The result on stdout: a line, or the one object of --json."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from ema_cli.cli.github import annotate_error, annotate_warnings
from ema_cli.cli.spelling import spelling_of
from ema_cli.errors import EmaError, printable

SCHEMA_VERSION = 1


def print_json(
    command: str | None,
    content: Mapping[str, object],
    *,
    warnings: Iterable[str] = (),
    problem: EmaError | None = None,
) -> None:
    """Print the one object of --json; a job gets annotations of the `warnings` and the `problem` in it."""
    import json  # which a page of help needs not

    annotate_warnings(warnings)
    envelope: dict[str, object] = {"schema_version": SCHEMA_VERSION, "command": command, **content}
    if problem is not None:
        spelling = spelling_of(command)
        annotate_error(problem, spelling)
        envelope["error"] = {
            "code": problem.exit_code,
            "message": problem.message(spelling),
            "hint": problem.advice(spelling),
        }
    # ASCII without a newline, whatever a file holds; but a log of GitHub's takes ##[ for a command anywhere.
    _write(json.dumps(envelope).replace("##[", r"#\u0023["))


def print_line(text: str) -> None:
    """Print a line on stdout, at once."""
    _write(printable(text))


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
