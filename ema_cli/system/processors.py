"""The processors that this process may use, and how much of them is idle."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_MANY_THREADS = 16
_STAT = Path("/proc/stat")  # of Linux


def default_threads() -> int:
    """Return the number of processors that this process may use, at most 16: more threads gain nothing."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, _MANY_THREADS)


def idle_seconds() -> float | None:
    """Return how long the machine's processors have been idle, all together; None where the system does not say."""
    with suppress(OSError, ValueError):
        idle, waiting = _STAT.read_text().split()[4:6]  # what does nothing, and what waits for a disk
        return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")
    return None
