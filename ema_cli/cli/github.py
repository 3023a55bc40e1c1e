"""Errors and warnings where a job on GitHub Actions shows them: at the top of its page, and beside the change.

Such a job reads commands from the lines of stdout and stderr alike; ours go to stderr. Elsewhere nothing is told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Literal

from ema_cli.errors import printable


def annotate(level: Literal["error", "warning"], message: str, hint: str | None = None) -> None:
    """Write one annotation to stderr, if this is a job of GitHub Actions."""
    if os.environ.get("GITHUB_ACTIONS") != "true" or sys.stderr is None:
        return
    text = printable(message) if hint is None else f"{printable(message)}\nhint: {printable(hint)}"
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    sys.stderr.write(f"::{level} title=ema-cli::{escaped}\n")


def annotate_all(content: Mapping[str, Any]) -> None:
    """Write an annotation of each warning, and of the error, in what --json prints."""
    told = [content, *(each for each in content.get("plans", ()) if "warnings" in each)]
    for message in dict.fromkeys(message for each in told for message in each.get("warnings", ())):
        annotate("warning", message)
    if "error" in content:
        annotate("error", content["error"]["message"], content["error"]["hint"])
