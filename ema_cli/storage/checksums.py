"""SHA-256 checksums of files, made while their bytes are written or read by several threads."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable
from typing import Protocol

BLOCK_BYTES = 16 << 20
_STEP = 1 << 20


class Digest(Protocol):
    """A checksum of bytes, as hashlib has them."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return the checksum as text."""
        ...


class Crc32:
    """The CRC-32 of bytes, as hashlib has its checksums: it finds damage in a third of the time, but no intent."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        """Return the checksum as text."""
        return f"{self._value:08x}"


class RunningChecksum:
    """The sha256, or another checksum, of a file that is written by range, in any order.

    It takes bytes in order only. A range that begins where the last one ended is added from memory, by the thread
    that wrote it. A range that comes too early, or while another thread adds, is noted, and read back when its turn
    has come: no thread waits for another. With ranges 0-9, 20-29, 10-19, written in that order: the first is added
    at once, the second noted, the third added at once, and then the second is read back.
    """

    def __init__(self, read: Callable[[int, int], bytes], checksum: Digest | None = None) -> None:
        """Begin the checksum; None for a sha256.

        `read(offset, size)` returns at most `size` written bytes from byte `offset`.
        """
        self._read = read
        self._checksum: Digest = checksum or hashlib.sha256()
        self.end = 0  # all bytes before this one are added
        self._early: dict[int, int] = {}  # begin -> end of written ranges that are not added yet, neighbours joined
        self._begins: dict[int, int] = {}  # end -> begin of the same
        self._lock = threading.Lock()
        self._busy = False  # a thread is adding
        self._given_up = False

    def add(self, offset: int, data: memoryview) -> None:
        """Add the range that was just written at byte `offset`, or note it."""
        if len(data) and self._takes_turn(offset, offset + len(data)):
            self._checksum.update(data)
            self._add_early(offset + len(data))

    def add_written(self, begin: int, end: int) -> None:
        """Add the range from byte `begin` to `end`, which somebody else has written, or note it."""
        if begin < end and self._takes_turn(begin, end):
            self._read_back(begin, end)
            self._add_early(end)

    def _takes_turn(self, begin: int, end: int) -> bool:
        """Return whether a range comes next, and this thread may add it; else it is noted."""
        with self._lock:
            if self._busy or begin != self.end:
                self._note(begin, end)
                return False
            self._busy = True
            return True

    def _add_early(self, end: int) -> None:
        """Add what was noted behind byte `end`, up to which all is added."""
        while True:
            with self._lock:
                begin, end = end, self._early.pop(end, end)
                if begin == end:
                    self.end, self._busy = end, False
                    return
                del self._begins[end]
            self._read_back(begin, end)

    def hexdigest(self, size: int) -> str:
        """Return the checksum of the file of `size` bytes; those that are not added yet are read back now."""
        self._read_back(self.end, size)
        self.end = size
        return self._checksum.hexdigest()

    def give_up(self) -> None:
        """Let a thread that reads back end with an error: nobody needs the checksum any more."""
        self._given_up = True

    def _note(self, begin: int, end: int) -> None:
        """Note a range as written, joined with its neighbours."""
        begin = self._begins.pop(begin, begin)
        end_of_next = self._early.pop(end, None)
        if end_of_next is not None:
            del self._begins[end_of_next]
            end = end_of_next
        self._early[begin], self._begins[end] = end, begin

    def _read_back(self, begin: int, end: int) -> None:
        while begin < end:
            data = self._read(begin, min(_STEP, end - begin))
            if not data or self._given_up:
                raise OSError(f"ends at byte {begin} while it is summed up")
            self._checksum.update(data)
            begin += len(data)


class BlockStream(Protocol):
    """Takes a stream of bytes in order, and gives the sha256 of its blocks."""

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""

    def checksums(self) -> list[str]:
        """Return the checksums."""


class Checksums:
    """The sha256 of each 16 MiB of the bytes that are read of each checkpoint, made while several threads read.

    The reads of a checkpoint are numbered 0, 1, ...; a thread that comes early waits for its turn, so that the
    checksums do not depend on the number of threads. A thread that takes a number must `add` or `skip` it, or `stop`
    all. Averaged and copied bytes are two streams, since other averages of the same pass decide from which
    checkpoints bytes are copied.
    """

    def __init__(self, count: int, stream_of: Callable[[int, bool], BlockStream] | None = None) -> None:
        """Begin the checksums of `count` checkpoints.

        Args:
            count: how many.
            stream_of: what takes the bytes of a checkpoint, the copied or the averaged ones; None to sum up all blocks.
        """
        make = stream_of or (lambda checkpoint, copied: Stream())
        self._next = [0] * count
        self._averaged = [make(checkpoint, False) for checkpoint in range(count)]
        self._copied = [make(checkpoint, True) for checkpoint in range(count)]
        self._turn = threading.Condition()
        self._stopped = False

    def add(self, checkpoint: int, number: int, data: memoryview, *, copied: bool = False) -> None:
        """Add the bytes of read number `number` of a checkpoint."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._next[checkpoint] == number)
            if self._stopped:
                return
        # No other thread has its turn before the number is raised.
        (self._copied if copied else self._averaged)[checkpoint].update(data)
        with self._turn:
            self._next[checkpoint] += 1
            self._turn.notify_all()

    def skip(self, checkpoint: int, number: int) -> None:
        """Pass over a number: nothing is read of this checkpoint."""
        self.add(checkpoint, number, memoryview(b""))

    def stop(self) -> None:
        """Let all threads go that wait: one has failed."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def blocks(self, checkpoint: int, *, newest: bool) -> list[str]:
        """Return the checksums of a checkpoint: of its averaged bytes, then, of the newest, of its copied ones."""
        copied = self._copied[checkpoint].checksums() if newest else []
        return [*self._averaged[checkpoint].checksums(), *copied]


class Stream:
    """The checksum of each block of a stream of bytes; the last block may be shorter."""

    def __init__(self) -> None:
        self._room = BLOCK_BYTES
        self._sha256 = hashlib.sha256()
        self._done: list[str] = []

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        while len(data):
            part = data[: self._room]
            self._sha256.update(part)
            self._room -= len(part)
            data = data[len(part) :]
            if not self._room:
                self._done.append(self._sha256.hexdigest())
                self._sha256, self._room = hashlib.sha256(), BLOCK_BYTES

    def checksums(self) -> list[str]:
        """Return the checksum of each block."""
        last = [self._sha256.hexdigest()] if self._room < BLOCK_BYTES else []
        return [*self._done, *last]
