"""What stands around the tensors of a file, where it is sent in order: bytes at hand, and ranges of other files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeAlias

from ema_cli.storage.source import FileRegion

AHEAD_BYTES = 8 << 20
"""How much is read ahead of a range that is copied."""

_PIECE_BYTES = 2 << 20
_AT_ONCE = AHEAD_BYTES // _PIECE_BYTES

Content: TypeAlias = bytes | memoryview | FileRegion
"""Bytes, or those of a range of another file."""


class Around(Protocol):
    """What stands around the tensors of a file, and follows from them."""

    def frame(self, checksum_of: Callable[[int, int], int]) -> Iterable[tuple[int, Content]]:
        """Yield all bytes behind the header that are no tensor's, each part with its offset, in order.

        Args:
            checksum_of: returns the CRC-32 of a range of `summed`, which has so many bytes from a byte of the file on.
                It is called for one after another, each when all before the next part is there.
        """
        ...

    def summed(self) -> Iterable[tuple[int, int]]:
        """Yield the ranges that have a CRC-32 in the file: the first byte, and how many; in order."""
        ...


class Copy:
    """A whole file that is copied, as an `Around` without any tensor."""

    def __init__(self, source: FileRegion) -> None:
        self._source = source

    def frame(self, _checksum_of: Callable[[int, int], int]) -> Iterable[tuple[int, Content]]:
        """Yield the file."""
        return [(0, self._source)]

    def summed(self) -> Iterable[tuple[int, int]]:
        """Yield nothing."""
        return ()


def size_of(content: Content) -> int:
    """Return the number of bytes."""
    return content.size if isinstance(content, FileRegion) else len(content)


def pieces(content: Content) -> Iterator[bytes | memoryview]:
    """Yield the bytes, those of another file piece by piece and read ahead: in a store each read has to be waited for.

    Raises:
        CheckpointError: where the other file cannot be read.
    """
    if not isinstance(content, FileRegion):
        yield content
        return
    if content.size <= _PIECE_BYTES:
        yield content.read(0, content.size)
        return
    ranges = ((at, min(_PIECE_BYTES, content.size - at)) for at in range(0, content.size, _PIECE_BYTES))
    pool = ThreadPoolExecutor(_AT_ONCE, "copy")
    try:
        ahead = deque(pool.submit(content.read, *each) for each in islice(ranges, _AT_ONCE))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(content.read, *each) for each in islice(ranges, 1))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
