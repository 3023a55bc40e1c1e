"""The sha256 of a file while it is written, by range and in any order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

_STEP = 1 << 20


class RunningSum:
    """The sum of the bytes 0, 1, ... of a file, as far as they are written without a gap. Safe from several threads.

    What comes right after them is summed up from memory, by the thread that has written it. What comes early, or
    while another thread sums up, is noted, and read again with `read(offset, size)` when its turn has come: nobody
    waits for anybody.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._sha256 = hashlib.sha256()
        self._end = 0  # what is before it is summed up
        self._early: dict[int, int] = {}  # begin -> end of a stretch that is written already, neighbours made one
        self._begins: dict[int, int] = {}  # its end -> its begin
        self._lock = threading.Lock()
        self._busy = False
        self._given_up = False

    def wrote(self, offset: int, data: memoryview) -> None:
        """Take in what was just written."""
        if not len(data):
            return
        with self._lock:
            if self._busy or offset != self._end:
                self._note(offset, offset + len(data))
                return
            self._busy = True
        self._sha256.update(data)
        end = offset + len(data)
        while True:
            with self._lock:
                begin, end = end, self._early.pop(end, end)
                if begin == end:
                    self._end, self._busy = end, False
                    return
                del self._begins[end]
            self._sum_up(begin, end)

    def whole(self, size: int) -> str:
        """Return the sum of the file of `size` bytes; what was not followed is read now."""
        self._sum_up(self._end, size)
        self._end = size
        return self._sha256.hexdigest()

    def give_up(self) -> None:
        """Let a thread that is summing up end with an error: nobody wants the sum any more."""
        self._given_up = True

    def _note(self, begin: int, end: int) -> None:
        begin = self._begins.pop(begin, begin)
        later = self._early.pop(end, None)
        if later is not None:
            del self._begins[later]
            end = later
        self._early[begin], self._begins[end] = end, begin

    def _sum_up(self, begin: int, end: int) -> None:
        while begin < end:
            data = self._read(begin, min(_STEP, end - begin))
            if not data or self._given_up:
                raise OSError(f"ends at byte {begin} while it is summed up")
            self._sha256.update(data)
            begin += len(data)
