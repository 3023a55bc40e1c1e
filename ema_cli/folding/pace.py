"""How long reads take, and whether making more of them at once would pay."""

from __future__ import annotations

import threading
import time

# A network file system answers later than this; a local disk, asked by as many threads as there are processors, does
# not, and is only slowed down by more of them.
_SLOW_READ_SECONDS = 4e-3
_GAIN = 1.2


class Pace:
    """What the reads of a fold have taken since they were looked at last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads = 0
        self._seconds = 0.0
        self._since = time.monotonic()
        self._rate = 0.0  # reads per second when more were started last

    def note(self, reads: int, seconds: float) -> None:
        """Count reads that took `seconds` each on average."""
        with self._lock:
            self._reads += reads
            self._seconds += reads * seconds

    def wants_more(self) -> bool:
        """Return whether reads are slow, and more of them at once would help, as far as they did the last time."""
        with self._lock:
            reads, seconds, now = self._reads, self._seconds, time.monotonic()
            elapsed = now - self._since
            if reads == 0:
                return False
            self._reads, self._seconds, self._since = 0, 0.0, now
        rate = reads / max(elapsed, 1e-9)
        if seconds < reads * _SLOW_READ_SECONDS or rate < self._rate * _GAIN:
            return False
        self._rate = rate
        return True
