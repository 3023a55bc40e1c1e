"""One sum over a folder of inputs: whether two sets are the same, and whether a program has changed one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sum_inputs(folder: Path) -> str:
    """Return the sum over all names, kinds and contents."""
    total = hashlib.sha256()
    for where, names, files in os.walk(folder):
        names.sort()
        for name in sorted([*files, *names]):
            path = Path(where) / name
            kind = "link" if path.is_symlink() else "file" if path.is_file() else "other"
            content = os.fsencode(path.readlink()) if kind == "link" else path.read_bytes() if kind == "file" else b""
            entry = f"{path.relative_to(folder)}\0{kind}\0{hashlib.sha256(content).hexdigest()}\n"
            total.update(entry.encode(errors="surrogateescape"))
    return total.hexdigest()
