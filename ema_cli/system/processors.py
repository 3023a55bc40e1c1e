"""The processors that this process may use."""

from __future__ import annotations

import os

_MANY_THREADS = 16


def default_threads() -> int:
    """Return the number of processors that this process may use, at most 16: more threads gain nothing."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, _MANY_THREADS)
