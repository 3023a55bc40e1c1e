"""A file that is written by range into a store, which takes it in order only.

What comes a little early is kept in memory; what comes earlier waits. Of tensors that share their bytes, the second
copy may belong far behind the first: it goes into a temporary file until its turn.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.storage.around import Around, Content, pieces, size_of
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import output_errors
from ema_cli.storage.store.uploads import Upload, held_bytes, sending_bytes

EARLY_BYTES = 16 << 20  # that may be kept
_LEAST_EARLY_BYTES = 2 << 20
_LAST_BYTES = 1 << 10  # that are kept, to be compared with what the store has
_LEAST_SHARD_BYTES = 6 << 20  # smaller ones are held until the end
_SPILLED_BYTES = 1 << 20  # that are read back at once


def early_bytes(objects: int) -> int:
    """Return how much that comes early is kept of each of so many objects that are sent at once."""
    return max(EARLY_BYTES // objects, min(EARLY_BYTES, _LEAST_EARLY_BYTES))


def memory_of_streams(sizes: Sequence[int], averages: int = 1, at_once: int = 1) -> int:
    """Return the memory that objects of some sizes take that are sent in turn, and completed at the end.

    Args:
        sizes: those of the objects of one average.
        averages: how many are sent at once.
        at_once: how many objects of each.
    """
    objects = averages * at_once
    sending = max((sending_bytes(size, objects) for size in sizes), default=0)
    return at_once * (early_bytes(objects) + sending) + sum(map(held_bytes, sizes))


def shard_that_fits(whole: int, nbytes: int) -> int | None:
    """Return the largest size of shards with which `whole` bytes are sent within memory of `nbytes`; None if none."""
    size = whole
    while size > _LEAST_SHARD_BYTES:
        if memory_of_streams([size] * -(-whole // size)) <= nbytes:
            return size
        size //= 2
    return None


class StoreStream:
    """A new object that is written by range, from several threads, and sent in order.

    Each byte behind the header is written once, by `write` if it is a tensor's. The writer of the first byte that is
    missing must never be one that waits here: blocks are made in the order of the file, each by one thread.

    Args:
        path: where it will be.
        size: how many bytes it will have.
        header: those before the tensors.
        around: those around them; None where there are none.
        spill: the path of a temporary file, which is made where it is needed.
        summed: whether to keep its sha256.
        objects: how many are sent at once.

    Attributes:
        upload: how it gets there: to be ended once all was written.
        last: the last bytes that were sent.
    """

    def __init__(
        self,
        path: StorePath,
        size: int,
        header: bytes,
        around: Around | None,
        *,
        spill: Path,
        summed: bool = True,
        objects: int = 1,
    ) -> None:
        self.path = path
        self.size = size
        self.last = b""
        self.upload = Upload(path, size, objects)
        self._most_early = early_bytes(objects)
        head: list[tuple[int, Content]] = [(0, header)] if header else []
        parts, places = (around.frame(self._checksum_of), around.frame(_no_checksum)) if around else ((), ())
        self._parts = (part for _, part in chain(head, parts) if size_of(part))
        self._places = deque(offset for offset, part in chain(head, places) if size_of(part))
        self._ranges = iter([(at, at + count) for at, count in (around.summed() if around else ()) if count])
        self._range = next(self._ranges, None)  # the one that is sent, or the next
        self._checksum = 0  # of what was sent of it
        self._checksums: deque[int] = deque()  # of those that were sent, until somebody asks for them
        self._spill = spill
        self._spilled = -1  # the descriptor of the temporary file
        self._sum = hashlib.sha256() if summed else None
        self._end = 0  # all bytes before this one are sent
        self._early: dict[int, bytes | int] = {}  # by offset: bytes, or how many lie in the temporary file
        self._turn = threading.Condition()
        self._busy = False  # a thread sends
        self._given_up = False

    def write(self, offset: int, data: bytes | memoryview, *, noted: bool = True, ahead: bool = False) -> None:
        """Send `data`, or keep it until it is its turn; what is `ahead` may belong far behind and does not wait.

        Raises:
            OutputError: where the store refuses, or the stream was given up.
        """
        if not len(data):
            return
        with self._turn:
            self._turn.wait_for(lambda: self._given_up or ahead or offset < self._end + self._most_early)
            self._check()
            if self._busy:
                self._keep(offset, data)
                return
            self._busy = True
        self._send_all(offset, data)

    def sync(self) -> None:
        """Send what stands behind the last tensor, and check that all was sent.

        Raises:
            OutputError: where it was not.
        """
        with self._turn:
            self._check()
            self._busy = True
        self._send_all(-1, b"")
        if self._end != self.size:
            raise OutputError(f"got {self._end} of {self.size} bytes", subject=self.path)

    def sha256(self) -> str:
        """Return the sha256 of what was sent as hexadecimal text, empty where it is not summed."""
        return "" if self._sum is None else self._sum.hexdigest()

    def give_up(self) -> None:
        """Let threads go that wait: nobody needs the object any more."""
        self.upload.stop()
        with self._turn:
            self._given_up = True
            self._turn.notify_all()

    def close(self) -> None:
        """Remove the temporary file. The upload is completed, or aborted, by whoever publishes."""
        with output_errors(self._spill):
            if self._spilled >= 0:
                os.close(self._spilled)
                self._spill.unlink(missing_ok=True)
                self._spilled = -1

    def _check(self) -> None:
        if self._given_up:
            raise OutputError("was given up", subject=self.path)

    def _send_all(self, offset: int, data: bytes | memoryview) -> None:
        """Send whatever is next, as long as there is something; keep `data` if it is not its turn."""
        try:
            while True:
                with self._turn:
                    piece: Iterator[bytes | memoryview] | None = self._next_piece()
                    if piece is None and offset == self._end:
                        piece, offset = iter([data]), -1
                    if piece is None:
                        if offset >= 0:
                            self._keep(offset, data)
                        self._busy = False
                        self._turn.notify_all()
                        return
                for part in piece:
                    self._send(part)
        except BaseException:
            self.give_up()
            raise

    def _next_piece(self) -> Iterator[bytes | memoryview] | None:
        """Return what is sent next of what is there, None if that is nothing."""
        if self._places and self._places[0] == self._end:
            return self._next_part()
        early = self._early.pop(self._end, None)
        if isinstance(early, int):
            return self._read_spilled(self._end, early)
        return None if early is None else iter([early])

    def _next_part(self) -> Iterator[bytes | memoryview]:
        """Yield the next bytes that are no tensor's."""
        self._places.popleft()
        yield from pieces(next(self._parts))

    def _checksum_of(self, _begin: int, size: int) -> int:
        return self._checksums.popleft() if size else 0

    def _send(self, data: bytes | memoryview) -> None:
        if self._sum is not None:
            self._sum.update(data)
        piece = bytes(data)
        self._add_to_checksums(memoryview(piece))
        self.last = (self.last + piece[-_LAST_BYTES:])[-_LAST_BYTES:]
        self.upload.send(piece)
        with self._turn:
            self._end += len(data)
            self._turn.notify_all()

    def _add_to_checksums(self, data: memoryview) -> None:
        while self._range is not None and self._range[0] < self._end + len(data):
            begin, end = self._range
            self._checksum = zlib.crc32(data[max(begin - self._end, 0) : end - self._end], self._checksum)
            if end > self._end + len(data):
                return
            self._checksums.append(self._checksum)
            self._checksum, self._range = 0, next(self._ranges, None)

    def _keep(self, offset: int, data: bytes | memoryview) -> None:
        if offset < self._end + self._most_early:
            self._early[offset] = bytes(data)
            return
        with output_errors(self._spill):
            if self._spilled < 0:
                self._spilled = os.open(self._spill, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            rest, position = memoryview(data), offset
            while len(rest):
                count = os.pwrite(self._spilled, rest, position)
                rest, position = rest[count:], position + count
        self._early[offset] = len(data)

    def _read_spilled(self, offset: int, size: int) -> Iterator[bytes]:
        end = offset + size
        while offset < end:
            with output_errors(self._spill):
                data = os.pread(self._spilled, min(_SPILLED_BYTES, end - offset), offset)
            if not data:
                raise OutputError(f"ends at byte {offset}", subject=self._spill)
            offset += len(data)
            yield data


def _no_checksum(_begin: int, _size: int) -> int:
    return 0
