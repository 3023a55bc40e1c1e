"""Run ema-cli on a disk that is far away: `slow_disk.py --latency 0.02 --bandwidth 500e6 -- average ckpts/ ...`.

Stands in for os.preadv and os.pread, through which ema-cli reads; the compiled kernel, which reads by itself, is kept
from it. Every read waits for the latency; reads of several
threads wait side by side, and share the bandwidth. Nothing reads ahead, as the kernel does for a real network file
system, and what is written is written at full speed.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class SlowDisk:
    """One line to a disk: an answer sets out after the latency, and answers come through one after the other."""

    def __init__(self, latency: float, bandwidth: float) -> None:
        self.latency = latency  # seconds
        self.bandwidth = bandwidth  # bytes per second
        self.reads = 0
        self._lock = threading.Lock()
        self._free_at = 0.0

    def arrival(self, asked: float, nbytes: int) -> float:
        """Return when the last byte of an answer to a question of time `asked` is there."""
        with self._lock:
            self.reads += 1
            self._free_at = max(asked + self.latency, self._free_at) + nbytes / self.bandwidth
            return self._free_at

    def slowed(self, read: Callable[..., Any], count: Callable[[Any], int]) -> Callable[..., Any]:
        """Return a reading function that takes as long as it would from this disk."""

        def slow(*arguments: Any) -> Any:
            asked = time.monotonic()
            found = read(*arguments)
            time.sleep(max(0.0, self.arrival(asked, count(found)) - time.monotonic()))
            return found

        return slow


def main() -> None:
    """Put the slow disk in place, and be ema-cli."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, metavar="SECONDS", help="of every read (default: 0.02)")
    parser.add_argument(
        "--bandwidth", type=float, default=500e6, metavar="BYTES", help="a second, of all threads (default: 500e6)"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and ema-cli's arguments")
    options = parser.parse_args()
    if options.latency < 0 or options.bandwidth <= 0 or options.command[:1] != ["--"]:
        parser.error("a latency, a bandwidth above 0, and after -- ema-cli's arguments")
    disk = SlowDisk(options.latency, options.bandwidth)
    os.preadv = disk.slowed(os.preadv, int)
    os.pread = disk.slowed(os.pread, len)
    from ema_cli.__main__ import main as ema_cli
    from ema_cli.folding.reading import FoldReader

    FoldReader.read_and_add = lambda *_: False  # type: ignore[method-assign]

    sys.argv = ["ema-cli", *options.command[1:]]
    ema_cli()


if __name__ == "__main__":
    main()
