"""The memory that this process has used, and that it may use. No numpy."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES, _LARGE_BYTES = 64 << 20, 32 << 20
_MANY = 10_000  # tensors, of which texts and tables take megabytes


def peak_bytes() -> int:
    """Return the peak of the resident memory of this process so far, in bytes."""
    try:
        # Not getrusage: on Linux its peak includes that of the process that started this one.
        peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        peak = None
    if peak:
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_bytes() -> int:
    """Return the memory of this machine, or of the part of it that this process may use, in bytes."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdecimal() else whole


def give_back(tensors: int) -> None:
    """Return to the system what malloc holds free after work on so many tensors: by itself the C library keeps it.

    It keeps the place of each long text, too: the next one rarely fits there.
    """
    if tensors < _MANY:
        return
    import ctypes  # only where it is needed: it takes longer than most of what a command line imports

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def keep_freed() -> None:
    """Have malloc keep what is freed, where much of a few hundred kilobytes comes and goes.

    By itself the C library gives it back each time, and the system has to make its pages anew.
    """
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, _KEPT_BYTES)
        set_option(_MMAP_THRESHOLD, _LARGE_BYTES)
