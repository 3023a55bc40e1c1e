"""The memory of this process: how much it has taken, and how much it is told to take. No numpy."""

from __future__ import annotations

import re
import resource
import sys
from fractions import Fraction
from pathlib import Path

from ema_cli.errors import UsageError

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?) ?(?:([kmgt])(i?))?b", re.IGNORECASE | re.ASCII)


def parse_size(text: str, option: str) -> int:
    """Read a number of bytes such as `200MB` or `1.5GiB`; `option` names the source in errors.

    Raises:
        UsageError: for anything else, a bare number included.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option}: '{text[:60]}' is not a size", hint="a number and a unit: 200MB, 1GiB")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower()) if prefix else 0
    return int(Fraction(number) * (1024 if binary else 1000) ** power)


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    try:
        # First, because on Linux the peak that getrusage tells begins with that of the process that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
