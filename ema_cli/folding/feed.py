"""What comes of one checkpoint from a store, block after block: its requests, and what has come and is not taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from ema_cli.dataclass import dataclass
from ema_cli.folding.reading import FoldReader
from ema_cli.storage.ranges import NARROW_BYTES
from ema_cli.storage.store.object_file import ObjectFile
from ema_cli.storage.store.object_pieces import Pieces

FileRange = tuple[ObjectFile, int, int]
"""Bytes of a file: the first, and the one behind the last."""

_FIRST_BYTES = 1 << 16  # that are received before there is a turn for them: the rest waits in the connection
_SOON_BYTES = 8 << 20  # before the end of a request the next one is made: a store takes a while to answer


@dataclass(slots=True)
class _Request:
    """A request that was made.

    Attributes:
        ranges: what it brings.
        pieces: receives it.
        first: returns the first piece, which may have come meanwhile.
        left: bytes that it still brings.
    """

    ranges: list[FileRange]
    pieces: Pieces
    first: Callable[[], memoryview]
    left: int


class Feed:
    """What comes of one checkpoint.

    Attributes:
        held: bytes that have come and are not taken.
    """

    def __init__(self, reader: FoldReader, ask_for_more: Callable[[], None]) -> None:
        self._requests: deque[list[FileRange]] = deque()
        self.held = 0
        self._reader = reader
        self._ask_for_more = ask_for_more
        self._pieces: deque[memoryview] = deque()
        self._current: _Request | None = None
        self._next: _Request | None = None

    def extend(self, ranges: Iterable[FileRange]) -> None:
        """Add what is to come after all that was to come so far."""
        self._requests.extend(_near(ranges))

    def begin(self) -> None:
        """Make the next request, unless it is made, or the last one has long to go."""
        if self._next is not None or self._left > _SOON_BYTES:
            return
        if not self._requests:
            self._ask_for_more()
        if self._requests:
            ranges = self._requests.popleft()
            pieces, size = _pieces(ranges), sum(end - begin for _, begin, end in ranges)
            first = self._reader.begin(partial(pieces.receive, _FIRST_BYTES))
            self._next = _Request(ranges, pieces, first, size)

    def receive(self, size: int) -> None:
        """Receive the next piece, of `size` bytes where that can be had, in the thread that calls."""
        if self._current is not None and self._current.left:
            piece = self._current.pieces.receive(size)
        else:
            assert self._next is not None, "each block that is taken was asked for"
            self._current, self._next = self._next, None
            piece = self._current.first()
        self._pieces.append(piece)
        self.held += len(piece)
        self._current.left -= len(piece)
        self.begin()

    def take(self, size: int) -> list[memoryview]:
        """Take so many bytes out of what is held."""
        found = []
        self.held -= size
        while size:
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            size -= len(piece)
            found.append(piece)
        return found

    def descriptor(self, size: int) -> int | None:
        """Return one from which the next `size` bytes can be read; None where there is none."""
        if self._current is None or self.held or self._left < size:
            return None
        return self._current.pieces.descriptor

    def skip(self, size: int) -> None:
        """Go on behind so many bytes, which have been read from the descriptor."""
        assert self._current is not None, "there is a descriptor"
        self._current.pieces.skip(size)
        self._current.left -= size
        self.begin()

    def leap(self, size: int) -> None:
        """Go on behind so many bytes, which did not all come from the descriptor, with a request of its own."""
        assert self._current is not None, "there is a descriptor"
        self._current.pieces.close()
        if self._next is not None:
            self._requests.appendleft(self._next.ranges)
        [(file, _, end)] = self._current.ranges
        if self._left > size:
            self._requests.appendleft([(file, end - self._left + size, end)])
        self._current = self._next = None

    @property
    def _left(self) -> int:
        return 0 if self._current is None else self._current.left


def _near(ranges: Iterable[FileRange]) -> Iterator[list[FileRange]]:
    """Yield the ranges in lists, each of those that come with one request: in one file, in order, with narrow gaps.

    Those that follow without a gap are one part.
    """
    near: list[FileRange] = []
    for file, begin, end in ranges:
        if near and (file is not near[-1][0] or not 0 <= begin - near[-1][2] <= NARROW_BYTES):
            yield near
            near = []
        if near and begin == near[-1][2]:
            begin = near.pop()[1]
        near.append((file, begin, end))
    if near:
        yield near


def _pieces(near: Sequence[FileRange]) -> Pieces:
    """Return the bytes of ranges that come with one request, in pieces, without what lies between them."""
    file, begin, end = near[0]
    return file.pieces(begin, end) if len(near) == 1 else Pieces(_without_gaps(near))


def _without_gaps(near: Sequence[FileRange]) -> Iterator[memoryview]:
    wanted, at = deque(near), near[0][1]
    pieces = near[0][0].pieces(at, near[-1][2])
    while wanted:
        piece = pieces.receive()
        after = at + len(piece)
        while wanted and wanted[0][1] < after:
            _, begin, end = wanted[0]
            yield piece[max(0, begin - at) : end - at]
            if end > after:
                break
            wanted.popleft()
        at = after
