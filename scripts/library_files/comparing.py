"""Compare what a library writes now with what it wrote before: names of files, and of tensors with their shapes."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import safe_open


def differences(written: Path, before: Path) -> list[str]:
    """Return a sentence for each difference between a library's new files and those of any version in `before`."""
    name = written.name.rpartition("-")[0]
    known = [path for path in before.iterdir() if path.name.rpartition("-")[0] == name]
    if not known:
        return [f"nothing of {name} in {before}"]
    new, old = _layout(written), _layout(known[-1])
    return [
        f"{path}: {new.get(path, 'is gone')}, was {old.get(path, 'not there')}"
        for path in sorted({*new, *old})
        if new.get(path) != old.get(path)
    ]


def _layout(folder: Path) -> dict[str, str]:
    """Return what each file is, by its path without dates and measured numbers."""
    files = (path for path in folder.rglob("*") if path.is_file())
    varying = r"\d{4}-.*?(?=/)|\s*-\d+\.\d{3,}|[0-9a-f]{32}$"  # dates, what was measured, and names of nothing
    return {re.sub(varying, "#", path.relative_to(folder).as_posix()): _describe(path) for path in files}


def _describe(path: Path) -> str:
    if path.suffix != ".safetensors":
        return "a file"
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return f"{sorted(shapes.items())}, metadata {sorted(file.metadata() or {})}"
