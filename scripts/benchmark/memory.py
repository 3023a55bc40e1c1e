"""How much memory a process tree takes, all of its processes together. The run that is looked at is not timed."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from .measure import Command, check, started

INTERVAL = 0.01  # seconds


@dataclass
class Memory:
    """Peaks, in bytes. Pages that several processes share count once in `together`, mapped files included."""

    together: int = 0  # proportional set size of all processes at one moment
    largest: int = 0  # resident set size of the largest process, by the kernel's own high-water mark
    read: int = 0  # what was asked of the kernel, from the page cache or not; mapped files are not in it
    samples: int = 0


def peak_memory(command: Command) -> Memory:
    """Run a command and return the peak of its memory, looked at every 10 ms.

    Raises:
        RunError: where it ends with another code than 0.
    """
    found = Memory()
    with started(command) as tree:
        while not tree.ended():
            begun = time.perf_counter()
            look(found, tree.process)
            time.sleep(max(0.0, INTERVAL - (time.perf_counter() - begun)))
    check(command, tree.code)
    return found


def look(found: Memory, root: int) -> None:
    """Add one look at a process and all that descend from it."""
    together = read = 0
    for process in descendants(root):
        folder = Path("/proc", str(process))
        with contextlib.suppress(OSError):  # it has just ended
            together += _kilobytes(folder / "smaps_rollup", "Pss")
            found.largest = max(found.largest, _kilobytes(folder / "status", "VmHWM"))
            asked = re.search(r"^rchar: (\d+)$", (folder / "io").read_text(), re.MULTILINE)
            read += int(asked[1]) if asked else 0  # a parent's holds those of its children that have ended
    found.together = max(found.together, together)
    found.read = max(found.read, read)
    found.samples += 1


def descendants(root: int) -> list[int]:
    """Return a process, its children, theirs, and so on."""
    found = [root]
    for process in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _kilobytes(path: Path, name: str) -> int:
    line = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    return int(line[1]) * 1024 if line else 0
