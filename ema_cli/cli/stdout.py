"""The result on stdout: a line, or the one object of --json."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from ema_cli.cli.github import annotate_error, annotate_warnings
from ema_cli.errors import EmaError, at_terminal

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
        annotate_error(problem)
        envelope["error"] = {
            "code": problem.exit_code,
            "message": problem.message(at_terminal),
            "hint": problem.advice(at_terminal),
        }
    print_line(json.dumps(envelope))


def print_line(text: str) -> None:
    """Print a line on stdout, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
