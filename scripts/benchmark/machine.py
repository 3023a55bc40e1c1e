"""What the figures depend on: machine, versions, date. From what the system says; no command is run as another user."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .commands import ema_cli


def facts(
    folder: Path, mergekit: Path | None = None, before: Path | None = None, script: str = "bench.py"
) -> dict[str, Any]:
    """Return machine, versions and date; `folder` is where the data lies, `script` what measures."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", f"scripts/{script}", *sys.argv[1:]]),
        "cpu": _first(r"^model name\s*: (.+)$", Path("/proc/cpuinfo")) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "file_system": file_system(folder),
        "kernel": platform.release(),
        "versions": versions(mergekit, before),
    }


def versions(mergekit: Path | None, before: Path | None) -> dict[str, str]:
    """Return the versions of all that takes part."""
    found = {"python": platform.python_version()}
    for name in ("ema-cli", "numpy", "safetensors", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    said = (_output([*ema_cli(), "--version"]) or "").splitlines()
    found["ema-cli"] += "".join(f", {line}" for line in [*_commit(Path(__file__).parent), *said[1:]])
    if before is not None:
        said = (_output([str(before), "--version"]) or "does not start").splitlines()
        found["the build before"] = ", ".join([said[0].removeprefix("ema-cli "), *_commit(before.parent)])
    found["mergekit"] = "not installed"
    if mergekit is not None:
        code = "import importlib.metadata; print(importlib.metadata.version('mergekit'))"
        found["mergekit"] = _output([str(mergekit / "bin" / "python"), "-c", code]) or found["mergekit"]
    return found


def _commit(folder: Path) -> list[str]:
    """Return the commit of a checkout, as a list; none of what is no checkout."""
    commit = _output(["git", "-C", str(folder), "describe", "--always", "--dirty"])
    return [commit] if commit else []


def file_system(folder: Path) -> str:
    """Return the type of the file system under a folder, and its device."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return f"{after.split()[0]} on {after.split()[1]}"
    return "unknown"


def _first(pattern: str, path: Path) -> str | None:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    return found[1].strip() if found else None


def _output(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
