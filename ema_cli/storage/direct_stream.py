"""A large file that is written by range past the page cache: put together in memory, and written by another thread.

The system keeps a copy of what is written to a file, page by page, and takes the pages from those of the files that
are read: of an output of many gigabytes this costs more than the disk does, and the fold waits for it. So a range is
copied into a segment of the file here, and a segment that is whole goes to the disk in one write, while the threads
fold on. It is summed up from memory. Where the file system does not know such writes (open(2), O_DIRECT), segments
are written as any file is.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.storage.output_stream import OutputStream, output_errors
from ema_cli.storage.segments import Segment, Segments

_LEAST_BYTES = 64 << 20  # of a file: a smaller one is soon read again, and stays in memory
_ALIGNMENT = 1 << 12  # of place, size and memory: what disks and file systems ask for is this or less
_NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)


def is_direct(size: int) -> bool:
    """Return whether a file of so many bytes is large enough."""
    return size >= _LEAST_BYTES


class DirectStream(OutputStream):
    """A new file of a known size that is written by range, from several threads; each byte once.

    Args:
        path: where; nothing may be there yet.
        size: of the file up to the last byte that is written here.
        segments: its memory, and that of others.
        summed: whether to keep its sha256.
        synced: whether the disk has to have it in the end.
        shared: whether others write into it, too: then it may be there, and it is not made `size` bytes long, which
            would cut off what they write behind it.

    Raises:
        OutputError: where the file system refuses; all methods raise it.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        segments: Segments,
        *,
        summed: bool = True,
        synced: bool = True,
        shared: bool = False,
    ) -> None:
        super().__init__(path, summed=summed, synced=synced, shared=shared)
        self.size = size
        self._segments = segments
        self._error: Exception | None = None
        self._is_given_up = False
        self._direct = -1
        try:
            if not shared:
                self.extend(size)
            if direct := getattr(os, "O_DIRECT", 0):
                with suppress(OSError):
                    self._direct = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | direct)
                # What is read back must bring nothing around it into the page cache: others write there past it.
                with suppress(OSError):
                    os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        except BaseException:
            super().close()
            raise

    def write(self, offset: int, data: bytes | memoryview, *, noted: bool = True, ahead: bool = False) -> None:
        """Take `data` for byte `offset`."""
        self._segments.put(self, offset, memoryview(data))

    def read(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from byte `offset`, of what is summed up or synced."""
        size = min(size, self._segments.rest(offset))  # the next segment may not be on the disk yet
        data = self._segments.read(self, offset, size)
        return super().read(offset, size) if data is None else data

    def sync(self) -> None:
        """Wait until all of it is written and, if it has to, the disk has it."""
        self._segments.drain(self)
        super().sync()

    def give_up(self) -> None:
        """Let threads go that wait: nobody needs the file any more."""
        self._is_given_up = True
        self._segments.wake()
        super().give_up()

    def close(self) -> None:
        """Close the descriptors; what was written since the last `sync` may be lost."""
        self._segments.forget(self)
        direct, self._direct = self._direct, -1  # as in `super`
        try:
            if direct >= 0:
                with output_errors(self.path):
                    os.close(direct)
        finally:
            super().close()

    def check(self) -> None:
        """Raise what a write has failed of, or that the file was given up."""
        if self._error is not None:
            with output_errors(self.path):
                raise self._error
        if self._is_given_up:
            raise OutputError("was given up", subject=self.path)

    @property
    def summed_up(self) -> int:
        """Return the byte up to which nothing is needed any more for the sum."""
        return self.size if self._sum is None else self._sum.end

    def sum_up(self, offset: int, data: memoryview) -> None:
        """Sum up a segment, or note it for its turn."""
        if self._sum is not None:
            with output_errors(self.path):
                self._sum.add(offset, data)

    def put_on_disk(self, segment: Segment) -> None:
        """Write a segment, in the thread that does so; an error is kept for `check`."""
        if self._error is not None:
            return
        try:
            if segment.is_whole:
                done = self._put_directly(segment)
                self._put(segment.begin + done, segment.memory[done:])
                return
            for begin, end in segment.ranges:
                self._put(segment.begin + begin, segment.memory[begin:end])
                self.note(segment.begin + begin, segment.begin + end)
        except Exception as error:  # noqa: BLE001 - else who waits for this thread would do so for ever
            self._error = error

    def _put_directly(self, segment: Segment) -> int:
        """Write as much of a segment as can be past the page cache; return how many bytes."""
        most, done = len(segment.memory) // _ALIGNMENT * _ALIGNMENT, 0
        while done < most and self._direct >= 0:
            try:
                done += os.pwrite(self._direct, segment.memory[done:most], segment.begin + done)
            except OSError as error:
                if error.errno in _NOT_DIRECT:  # some file systems say so only now, or of what is left
                    return done
                raise
        return done
