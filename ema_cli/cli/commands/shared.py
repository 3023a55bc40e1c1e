"""What several commands do: print the envelope of --json."""

from __future__ import annotations

import json
from typing import Any

import typer

from ema_cli.cli.github import annotate_all
from ema_cli.errors import EmaError, at_terminal

SCHEMA_VERSION = 1


def print_json(command: str | None, content: dict[str, Any]) -> None:
    """Print what --json gives; a job of GitHub Actions is told the errors and warnings in it, too."""
    annotate_all(content)
    typer.echo(json.dumps({"schema_version": SCHEMA_VERSION, "command": command, **content}))


def error_facts(problem: EmaError) -> dict[str, Any]:
    """Return an error as --json tells it."""
    return {
        "code": problem.exit_code,
        "message": problem.message(at_terminal),
        "hint": problem.advice(at_terminal),
    }
