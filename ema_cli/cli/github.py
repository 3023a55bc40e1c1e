"""Errors and warnings where a job on GitHub Actions shows them: at the top of its page, and next to the change.

Such a job reads commands from the lines of stdout and stderr alike; ours go to stderr. Elsewhere nothing is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Literal

from ema_cli.errors import EmaError, Spelling, printable


def annotate(level: Literal["error", "warning"], message: str, hint: str | None = None) -> None:
    """Write one annotation to stderr, if this is a job of GitHub Actions."""
    if os.environ.get("GITHUB_ACTIONS") != "true" or sys.stderr is None:
        return
    text = printable(message) if hint is None else f"{printable(message)}\nhint: {printable(hint)}"
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    sys.stderr.write(f"::{level} title=ema-cli::{escaped}\n")


def annotate_warnings(messages: Iterable[str]) -> None:
    """Write an annotation of each warning, of equal ones a single one."""
    for message in dict.fromkeys(messages):
        annotate("warning", message)


def annotate_error(problem: EmaError, spelling: Spelling) -> None:
    """Write an annotation of an error, with what to do."""
    annotate("error", problem.message(spelling), problem.advice(spelling))
