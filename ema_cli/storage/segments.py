"""Memory for what is on its way to new files: put together until it can be written at once, by other threads."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Protocol

from ema_cli.system.threads import thread_errors

SEGMENT_BYTES = 1 << 20
_MOST_WRITERS = 4


class Segmented(Protocol):
    """A file whose segments are kept here.

    Attributes:
        size: of the whole file, in bytes.
    """

    size: int

    @property
    def summed_up(self) -> int:
        """Return the byte up to which nothing is needed any more for the sum of the file."""

    def check(self) -> None:
        """Raise what a write has failed of, or that the file was given up."""

    def sum_up(self, offset: int, data: memoryview) -> None:
        """Sum up a segment that is whole, or note it for its turn."""

    def put_on_disk(self, segment: Segment) -> None:
        """Write a segment, whole or as it is; what it fails of is kept for `check`."""


class Segment:
    """A stretch of a new file: its memory, and which ranges of it are there."""

    def __init__(self, stream: Segmented, begin: int, place: memoryview) -> None:
        self.stream, self.begin, self.place = stream, begin, place
        self.memory = place[: stream.size - begin]
        self.ranges: list[tuple[int, int]] = []
        self.missing = len(self.memory)  # bytes
        self.users = 0  # threads that copy into it, or sum it up
        self.is_written = False

    @property
    def is_whole(self) -> bool:
        """Return whether all its bytes are there."""
        return not self.missing


class Segments:
    """The memory of segments of all files that are written at once, and the threads that write them.

    Every file that takes part is closed before this is. Where the memory is used up, who brings more waits; if that is
    for segments that are not whole, the oldest of these is written as it is.
    """

    def __init__(self, count: int) -> None:
        """Take memory for `count` segments.

        Raises:
            EmaError: where no thread can be started.
            MemoryError: where the system does not give the memory.
        """
        try:  # mapped, as the disk takes whole pages
            mapped = mmap.mmap(-1, count * SEGMENT_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(str(error)) from error
        memory = memoryview(mapped)
        self._free = [memory[at : at + SEGMENT_BYTES] for at in range(0, len(memory), SEGMENT_BYTES)]
        self._turn = threading.Condition()
        self._open: dict[tuple[Segmented, int], Segment] = {}  # by file and first byte, the oldest first
        self._whole: dict[tuple[Segmented, int], Segment] = {}  # until they are written, and summed up
        self._queue: deque[Segment] = deque()  # to be written
        self._writing: list[Segment] = []
        self._is_closed = False
        self._writers: list[threading.Thread] = []
        with thread_errors():
            self._start_writer()

    def put(self, stream: Segmented, offset: int, data: memoryview) -> None:
        """Copy `data` into the segments of a file; sum up those that are whole then.

        Raises:
            OutputError: where the file cannot be written, or was given up.
        """
        while len(data):
            at, count = offset % SEGMENT_BYTES, min(len(data), self.rest(offset))
            segment = self._hold(stream, offset - at)
            segment.memory[at : at + count] = data[:count]
            with self._turn:
                segment.ranges.append((at, at + count))
                segment.missing -= count
                if is_whole := segment.is_whole:
                    self._whole[stream, segment.begin] = segment
                    self._send(segment)
            if is_whole:
                stream.sum_up(segment.begin, segment.memory)
            with self._turn:
                segment.users -= 1
                if is_whole:
                    self._release_done(stream)
                if not segment.users and not self._free:
                    self._turn.notify_all()  # who waits for memory may have it written, or take it, now
            offset, data = offset + count, data[count:]

    def read(self, stream: Segmented, offset: int, size: int) -> bytes | None:
        """Return bytes of a segment that is whole, as many as it has; None where they are on the disk."""
        at = offset % SEGMENT_BYTES
        with self._turn:
            segment = self._whole.get((stream, offset - at))
            return None if segment is None else bytes(segment.memory[at : at + size])

    def rest(self, offset: int) -> int:
        """Return how many bytes a segment has from byte `offset` of the file on."""
        return SEGMENT_BYTES - offset % SEGMENT_BYTES

    def drain(self, stream: Segmented) -> None:
        """Wait until all that a file was given is written.

        Raises:
            OutputError: where it cannot be.
        """
        with self._turn:
            for segment in [segment for segment in self._open.values() if segment.stream is stream]:
                self._send(segment)
            while any(segment.stream is stream for segment in chain(self._queue, self._writing)):
                stream.check()
                self._turn.wait()
            stream.check()

    def wake(self) -> None:
        """Let threads that wait see that their file was given up."""
        with self._turn:
            self._turn.notify_all()

    def forget(self, stream: Segmented) -> None:
        """Drop what a file was given and is not written; wait for what is being written."""
        with self._turn:
            self._queue = deque(segment for segment in self._queue if segment.stream is not stream)
            while any(segment.stream is stream for segment in self._writing):
                self._turn.wait()
            for table in (self._open, self._whole):
                for key in [key for key in table if key[0] is stream]:
                    self._free.append(table.pop(key).place)
            self._turn.notify_all()

    def close(self) -> None:
        """End the threads, and give the memory back, though closed files may be kept."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()
        for writer in self._writers:
            writer.join()
        self._free.clear()

    def _hold(self, stream: Segmented, begin: int) -> Segment:
        """Return the segment of a file that begins at a byte, to copy into it; wait for memory where it is new."""
        with self._turn:
            while True:
                stream.check()
                segment = self._open.get((stream, begin))
                if segment is None and self._free:
                    segment = self._open[stream, begin] = Segment(stream, begin, self._free.pop())
                if segment is not None:
                    segment.users += 1
                    return segment
                if not self._make_room():
                    self._turn.wait()

    def _make_room(self) -> bool:
        """Return whether there is memory now; else see to it that there will be."""
        done = [segment for segment in self._whole.values() if segment.is_written and not segment.users]
        if done:  # one that comes too early to be summed up is read again for that
            self._release(max(done, key=lambda segment: segment.begin))
            return True
        if self._queue:
            with suppress(RuntimeError):  # those that run go on
                self._start_writer()
        elif not self._writing:
            oldest = next((segment for segment in self._open.values() if not segment.users), None)
            if oldest is not None:
                self._send(oldest)
        return False

    def _send(self, segment: Segment) -> None:
        """Let a segment be written, whole or as it is."""
        del self._open[segment.stream, segment.begin]
        self._queue.append(segment)
        self._turn.notify_all()

    def _release_done(self, stream: Segmented) -> None:
        """Take back the memory of what is written and summed up."""
        end = stream.summed_up
        for segment in [segment for segment in self._whole.values() if segment.stream is stream]:
            if segment.is_written and not segment.users and segment.begin < end:
                self._release(segment)

    def _release(self, segment: Segment) -> None:
        self._whole.pop((segment.stream, segment.begin), None)
        self._free.append(segment.place)
        self._turn.notify_all()

    def _start_writer(self) -> None:
        if len(self._writers) < _MOST_WRITERS:
            writer = threading.Thread(target=self._write_queued, name="write", daemon=True)
            writer.start()
            self._writers.append(writer)

    def _write_queued(self) -> None:
        """Write what is queued, until all files are closed."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._queue or self._is_closed)
                if not self._queue:
                    return
                segment = self._queue.popleft()
                self._writing.append(segment)
            segment.stream.put_on_disk(segment)
            with self._turn:
                self._writing.remove(segment)
                segment.is_written = True
                if segment.is_whole:
                    self._release_done(segment.stream)
                else:
                    self._release(segment)
                self._turn.notify_all()


@contextmanager
def segments_for(count: int) -> Iterator[Segments | None]:
    """Yield memory for so many segments, None where there are none, and end its threads.

    Raises:
        EmaError: where no thread can be started.
        MemoryError: where the system does not give the memory.
    """
    if not count:
        yield None
        return
    segments = Segments(count)
    try:
        yield segments
    finally:
        segments.close()
