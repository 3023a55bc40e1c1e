"""Have the blocks come from a store in long requests: for each checkpoint one after another, over many blocks.

What costs a store, and whoever pays for it, is the request. One for each block would be small, or blocks large; so a
request goes on over all blocks of a stretch, and the next one follows. What comes of all checkpoints is taken in turns,
and what is not taken yet waits in the connections. Where these are ours, the kernel receives from them and adds; else
one thread takes the next block while another adds the last one where it lies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.folding.block_task import BlockTask
from ema_cli.folding.buffers import Arrival, arrival
from ema_cli.folding.direct import spans_in
from ema_cli.folding.kernel import BlockSums
from ema_cli.folding.reading import FoldReader, Stopped
from ema_cli.storage.object_pieces import Pieces
from ema_cli.storage.objects import ObjectFile
from ema_cli.storage.ranges import NARROW_BYTES

Part = tuple[ObjectFile, int, int]
"""Bytes of a file: the first, and the one behind the last."""

Taken = dict[int, list[memoryview]]
"""A block in pieces, by checkpoint."""

_SOON_BYTES = 8 << 20  # before the end of a request the next one is made: a store takes a while to answer


class Ahead:
    """The blocks that one thread folds, and what comes of them from a store; a `Reader`."""

    def __init__(self, reader: FoldReader, next_stretch: Callable[[], Sequence[BlockTask]]) -> None:
        """Take no block before somebody takes the `tasks`: it might be folded by nobody.

        Args:
            reader: reads what does not lie in objects, and what is read again.
            next_stretch: returns the next blocks for this thread, one after another; none where there are no more.
        """
        self._reader = reader
        self._next_stretch = next_stretch
        self._feeds = [_Feed(reader, self._ask_for_more) for _ in reader.checkpoints]
        self._tasks: deque[tuple[BlockTask, bytes]] = deque()  # with a 1 for each checkpoint of which it comes
        # Of the block that is folded: what was taken, and of each checkpoint of which more comes, how many bytes.
        self._taken: Taken = {}
        self._coming: dict[int, int] = {}
        self._has_ended = False
        # One thread for all blocks: what many receive, malloc keeps for each of them.
        self._taker = None if arrival(reader.checkpoints) is Arrival.STRAIGHT else ThreadPoolExecutor(1, "take")

    def tasks(self) -> Iterator[BlockTask]:
        """Yield the blocks, in their order. While one is folded, the next one may be taken from the connections.

        Raises:
            CheckpointError: where they cannot be read.
            Stopped: where the fold has ended.
        """
        try:
            following = self._begin_next()
            while following is not None:
                task, sizes, taken = following
                if taken is None:
                    self._taken, self._coming = {}, sizes
                    yield task
                    self._take_rest(task)  # where somebody did without it, too: the next block comes behind it
                    following = self._begin_next()
                else:
                    self._taken, self._coming = taken.result(), {}
                    following = self._begin_next()
                    yield task
        finally:
            if self._taker is not None:
                self._taker.shutdown(wait=False)

    def offset(self, task: BlockTask, number: int) -> int:
        """Return where in its file the block of a checkpoint begins; 0 where that is not known."""
        return self._reader.offset(task, number)

    def read(self, task: BlockTask, numbers: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the block of a checkpoint."""
        self._take_rest(task)
        self._reader.read(task, numbers, rows, self._taken)

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Add the blocks of these checkpoints where they lie; return False where they have to be summed up, too.

        Raises:
            SumsLost: where one of them does not come. It is read in another way now.
        """
        if self._reader.sums_up:
            return False
        if self._receive_and_add(numbers, sums):
            return True
        self._take_rest(task)
        if not all(number in self._taken for number in numbers):
            return False
        sums.add_pieces(numbers, [self._taken.pop(number) for number in numbers])
        return True

    def read_again(self, task: BlockTask, number: int, row: memoryview) -> None:
        """Fill the row with a block that has been read before."""
        self._reader.read_again(task, number, row)

    def _receive_and_add(self, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Have the kernel receive the blocks of these checkpoints and add them; return whether it can."""
        if not all(number in self._coming for number in numbers):
            return False
        feeds, sizes = [self._feeds[number] for number in numbers], [self._coming[number] for number in numbers]
        descriptors: list[int] = []
        for feed, size in zip(feeds, sizes, strict=True):
            descriptor = feed.descriptor(size)
            if descriptor is None:
                return False
            descriptors.append(descriptor)
        if not sums.reads(numbers):
            return False
        pass_over = _Feed.leap
        try:
            self._reader.receive_and_add(sums, numbers, descriptors, sizes)
            pass_over = _Feed.skip
        finally:
            for number, feed, size in zip(numbers, feeds, sizes, strict=True):
                del self._coming[number]
                pass_over(feed, size)
        return True

    def _begin_next(self) -> tuple[BlockTask, dict[int, int], Future[Taken] | None] | None:
        """Return the next block, the bytes that come of it, by checkpoint, and what takes them, if that has begun.

        None where there are no more.
        """
        if not self._tasks:
            self._ask_for_more()
        if not self._tasks:
            return None
        task, comes = self._tasks.popleft()
        sizes = {
            number: task.block.dtypes[number].nbytes(task.block.count) for number, is_so in enumerate(comes) if is_so
        }
        if self._taker is not None:
            try:
                return task, sizes, self._taker.submit(self._take, task, sizes)
            except RuntimeError:  # no more threads may be started: each block is taken when it is folded
                self._taker.shutdown(wait=False, cancel_futures=True)
                self._taker = None
        return task, sizes, None

    def _take_rest(self, task: BlockTask) -> None:
        """Take what comes of the block that is folded, and was not taken yet."""
        self._taken |= self._take(task, self._coming)
        self._coming = {}

    def _take(self, task: BlockTask, sizes: dict[int, int]) -> Taken:
        """Return a block in pieces, of each checkpoint of which so many bytes come."""
        if not sizes:
            return {}
        with self._reader.counted([*sizes.values()]), self._reader.naming(task, [*sizes]):
            lacking = [(self._feeds[number], size) for number, size in sizes.items()]
            for feed, _ in lacking:
                feed.begin()
            # In turns: while one is taken, the next bytes of the others come.
            while lacking := [(feed, size) for feed, size in lacking if feed.held < size]:
                for feed, size in lacking:
                    feed.receive(size - feed.held)
                if self._reader.is_stopped:
                    raise Stopped
        return {number: self._feeds[number].take(size) for number, size in sizes.items()}

    def _ask_for_more(self) -> None:
        """Take the next stretch for this thread, if there is one."""
        stretch = () if self._has_ended else self._next_stretch()
        self._has_ended = not stretch
        rows = [_places(checkpoint, number, stretch) for number, checkpoint in enumerate(self._reader.checkpoints)]
        for feed, row in zip(self._feeds, rows, strict=True):
            feed.requests.extend(_near(part for parts in row for part in parts))
        self._tasks.extend(zip(stretch, (bytes(map(bool, each)) for each in zip(*rows, strict=True)), strict=True))


@dataclass(slots=True)
class _Request:
    """A request that was made.

    parts: what it brings.
    pieces: receives it.
    first: returns the first piece, which may have come meanwhile.
    left: bytes that it still brings.
    """

    parts: list[Part]
    pieces: Pieces
    first: Callable[[], memoryview]
    left: int


class _Feed:
    """What comes of one checkpoint.

    requests: those that are not made yet, each the parts that come with it.
    held: bytes that have come and are not taken.
    """

    def __init__(self, reader: FoldReader, ask_for_more: Callable[[], None]) -> None:
        self.requests: deque[list[Part]] = deque()
        self.held = 0
        self._reader = reader
        self._ask_for_more = ask_for_more
        self._pieces: deque[memoryview] = deque()
        self._current: _Request | None = None
        self._next: _Request | None = None

    def begin(self) -> None:
        """Make the next request, unless it is made, or the last one has long to go."""
        if self._next is not None or self._left > _SOON_BYTES:
            return
        if not self.requests:
            self._ask_for_more()
        if self.requests:
            parts = self.requests.popleft()
            pieces, size = _pieces(parts), sum(end - begin for _, begin, end in parts)
            self._next = _Request(parts, pieces, self._reader.begin(pieces.receive), size)

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
            self.requests.appendleft(self._next.parts)
        [(file, _, end)] = self._current.parts
        if self._left > size:
            self.requests.appendleft([(file, end - self._left + size, end)])
        self._current = self._next = None

    @property
    def _left(self) -> int:
        return 0 if self._current is None else self._current.left


def _places(checkpoint: Checkpoint, number: int, tasks: Sequence[BlockTask]) -> list[list[Part]]:
    """Return where each block lies in a checkpoint: nothing where it is not read of it, or not all in objects."""
    found: list[list[Part]] = []
    for task in tasks:
        spans = None
        if task.block.averaged or number in task.weights.bases:
            spans = spans_in(ObjectFile, checkpoint.tensors, task.block.pieces, task.block.dtypes[number])
        found.append([(file, begin, begin + size) for file, begin, size in spans or ()])
    return found


def _near(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Yield the parts in lists, each of those that come with one request: in one file, in order, with narrow gaps.

    Those that follow without a gap are one part.
    """
    near: list[Part] = []
    for file, begin, end in parts:
        if near and (file is not near[-1][0] or not 0 <= begin - near[-1][2] <= NARROW_BYTES):
            yield near
            near = []
        if near and begin == near[-1][2]:
            begin = near.pop()[1]
        near.append((file, begin, end))
    if near:
        yield near


def _pieces(near: Sequence[Part]) -> Pieces:
    """Return the bytes of parts that come with one request, in pieces, without what lies between them."""
    file, begin, end = near[0]
    return file.pieces(begin, end) if len(near) == 1 else Pieces(_without_gaps(near))


def _without_gaps(near: Sequence[Part]) -> Iterator[memoryview]:
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
