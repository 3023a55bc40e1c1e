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


BLOCK_BYTES = 16 << 20


class Checksums:
    """The sha256 of each 16 MiB of what is read of each checkpoint, made while it is read, by several threads.

    What is read has numbers: 0, 1, ... for each checkpoint. A thread that is early waits for its turn, so that the
    sums depend on no number of threads. Whoever takes a number must `add` or `skip` it, or `stop` all. What is copied
    and what is averaged are streams of their own: which checkpoints are copied from, depends on what else is made.
    """

    def __init__(self, count: int) -> None:
        self._next = [0] * count
        self._averaged = [_Stream() for _ in range(count)]
        self._copied = [_Stream() for _ in range(count)]
        self._turn = threading.Condition()
        self._stopped = False

    def add(self, checkpoint: int, number: int, data: memoryview, *, copied: bool = False) -> None:
        """Take in what was read as the `number`-th of a checkpoint."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._next[checkpoint] == number)
            if self._stopped:
                return
        # Nobody else has its turn until the next is called.
        (self._copied if copied else self._averaged)[checkpoint].update(data)
        with self._turn:
            self._next[checkpoint] += 1
            self._turn.notify_all()

    def skip(self, checkpoint: int, number: int) -> None:
        """Say that of this checkpoint the `number`-th is not read."""
        self.add(checkpoint, number, memoryview(b""))

    def stop(self) -> None:
        """Let go all that wait: one of the others has failed."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def blocks(self, checkpoint: int, *, newest: bool) -> list[str]:
        """Return the sums when all is read: of what was averaged, then, of the `newest`, of what was copied."""
        copied = self._copied[checkpoint].all() if newest else []
        return [*self._averaged[checkpoint].all(), *copied]


class _Stream:
    """The sums of the blocks of one stream of bytes."""

    def __init__(self) -> None:
        self._room = BLOCK_BYTES
        self._sha256 = hashlib.sha256()
        self._done: list[str] = []

    def update(self, data: memoryview) -> None:
        while len(data):
            part = data[: self._room]
            self._sha256.update(part)
            self._room -= len(part)
            data = data[len(part) :]
            if not self._room:
                self._done.append(self._sha256.hexdigest())
                self._sha256, self._room = hashlib.sha256(), BLOCK_BYTES

    def all(self) -> list[str]:
        rest = [self._sha256.hexdigest()] if self._room < BLOCK_BYTES else []
        return [*self._done, *rest]
