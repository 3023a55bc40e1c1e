"""Tell from the time that reads take whether more of them at once would help."""

from __future__ import annotations

import threading
import time

from ema_cli.system.processors import idle_seconds

# A network file system takes longer than this to answer. A local disk does not, if as many threads read as there are
# processors; more threads only slow it down.
_SLOW_READ_SECONDS = 4e-3
_GAIN = 1.2
# Where the system reads ahead, the first reads of a file wait, and later ones in bursts: alone they say little.
_LEAST_SECONDS = 0.5


class Pace:
    """The reads of a fold since the last decision: how many, and how long they took.

    Attributes:
        was_in_vain: whether the last increase did not help.
        slow_seconds: from so long on a read is slow.
        least_idle: processors that are idle, without which no more is read at once.
    """

    def __init__(self) -> None:
        self.was_in_vain = False
        self.slow_seconds = _SLOW_READ_SECONDS
        self.least_idle = 0.0
        self._lock = threading.Lock()
        self._reads = 0
        self._seconds = 0.0
        self._since = time.monotonic()
        self._idle: float | None = None  # seconds, when it was decided last
        self._begun = False  # whether what was read first is behind
        self._rate = 0.0  # reads per second when more were started last

    def note(self, reads: int, seconds: float) -> None:
        """Count reads that took `seconds` each on average."""
        with self._lock:
            self._reads += reads
            self._seconds += reads * seconds

    def wants_more(self) -> bool:
        """Decide whether to read more at once: reads are slow, and the last increase made their rate a fifth higher.

        Asked more often than every half second, it answers False, and decides later; while processors are busy, too.
        """
        with self._lock:
            reads, seconds, now = self._reads, self._seconds, time.monotonic()
            elapsed = now - self._since
            if reads == 0 or elapsed < _LEAST_SECONDS:
                return False
            self._reads, self._seconds, self._since = 0, 0.0, now
            before, self._idle = self._idle, idle_seconds() if self.least_idle else None
            if not self._begun:
                self._begun = True
                return False
        if before is not None and self._idle is not None and self._idle - before < self.least_idle * elapsed:
            return False
        rate = reads / max(elapsed, 1e-9)
        if seconds < reads * self.slow_seconds or rate < self._rate * _GAIN:
            self.was_in_vain = self._rate > 0
            return False
        self._rate = rate
        return True
