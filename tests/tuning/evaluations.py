"""What evaluations in tests know of a candidate."""

from __future__ import annotations

from pathlib import Path

from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions


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
