"""What evaluations in tests know of a candidate."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions

PYTHON = f"{sys.executable} -ISc"


def asked(path: Path) -> dict[str, str]:
    """Return what a candidate was asked for, by its mark."""
    mark = open_checkpoint(path, ReadOptions(keep_prefix=True)).mark
    assert mark is not None
    return {name: value for name, value in mark.items() if isinstance(value, str)}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder, but for manifest and sums."""
    files = (path for path in folder.rglob("*") if path.is_file())
    own = ("ema-manifest.json", "SHA256SUMS")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name not in own}


def python(code: str) -> str:
    """Return a command line that runs some Python."""
    return f"{PYTHON} {shlex.quote(code)} {{path}}"


def calls(folder: Path) -> list[str]:
    """Return the names of the candidates that were evaluated."""
    path = folder / "calls"
    return path.read_text().split() if path.exists() else []
