"""Have the blocks come from a store in long requests: for each checkpoint one after another, over many blocks.

What costs a store, and whoever pays for it, is the request. One for each block would be small, or blocks large; so a
request goes on over all blocks of a stretch, and the next one follows. One thread takes what comes of all checkpoints
in turns, for the next block, while another adds the last one where it lies. What is not taken yet waits in the
connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ema_cli.checkpoint import Checkpoint
from ema_cli.folding.block_task import BlockTask
from ema_cli.folding.direct import spans_in
from ema_cli.folding.kernel import BlockSums
from ema_cli.folding.reading import FoldReader, Stopped
from ema_cli.storage.objects import ObjectFile
from ema_cli.storage.ranges import NARROW_BYTES

Part = tuple[ObjectFile, int, int]
"""Bytes of a file: the first, and the one behind the last."""

_SOON_BYTES = 1 << 20  # before the end of a request the next one is made: a store takes a while to answer


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
        self._come: dict[int, list[memoryview]] = {}  # of the block that is folded, by checkpoint
        self._has_ended = False
        # One thread for all blocks: what many receive, malloc keeps for each of them.
        self._taker: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "take")

    def tasks(self) -> Iterator[BlockTask]:
        """Yield the blocks, in their order. While one is folded, the next one is taken from the connections.

        Raises:
            CheckpointError: where they cannot be read.
            Stopped: where the fold has ended.
        """
        try:
            coming = self._begin_next()
            while coming is not None:
                task, come = coming
                self._come = come()
                coming = self._begin_next()
                yield task
        finally:
            if self._taker is not None:
                self._taker.shutdown(wait=False)

    def offset(self, task: BlockTask, number: int) -> int:
        """Return where in its file the block of a checkpoint begins; 0 where that is not known."""
        return self._reader.offset(task, number)

    def read(self, task: BlockTask, numbers: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the block of a checkpoint."""
        self._reader.read(task, numbers, rows, self._come)

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Add the blocks of these checkpoints where they lie; return False where they have to be summed up, too."""
        if self._reader.sums_up or not all(number in self._come for number in numbers):
            return False
        sums.add_pieces(numbers, [self._come.pop(number) for number in numbers])
        return True

    def read_again(self, task: BlockTask, number: int, row: memoryview) -> None:
        """Fill the row with a block that has been read before."""
        self._reader.read_again(task, number, row)

    def _begin_next(self) -> tuple[BlockTask, Callable[[], dict[int, list[memoryview]]]] | None:
        """Begin to take the next block, and return it and what waits for what comes of it; None where there is none."""
        if not self._tasks:
            self._ask_for_more()
        if not self._tasks:
            return None
        task, comes = self._tasks.popleft()
        take = partial(self._take, task, comes)
        if self._taker is not None:
            try:
                return task, self._taker.submit(take).result
            except RuntimeError:  # no more threads may be started: each block is taken when it is folded
                self._taker.shutdown(wait=False, cancel_futures=True)
                self._taker = None
        return task, take

    def _take(self, task: BlockTask, comes: bytes) -> dict[int, list[memoryview]]:
        """Return a block in pieces, of each checkpoint of which it comes; one block after the other is taken."""
        sizes = {
            number: task.block.dtypes[number].nbytes(task.block.count) for number, is_so in enumerate(comes) if is_so
        }
        if not sizes:
            return {}
        with self._reader.counted([*sizes.values()]), self._reader.naming(task, [*sizes]):
            lacking = [(self._feeds[number], size) for number, size in sizes.items()]
            for feed, _ in lacking:
                feed.begin()
            # In turns: while one is taken, the next bytes of the others come.
            while lacking := [(feed, size) for feed, size in lacking if feed.held < size]:
                for feed, _ in lacking:
                    feed.receive()
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
        self._answer: Iterator[memoryview] = iter(())
        self._left = 0  # bytes that the answer still brings
        self._next: tuple[Callable[[], memoryview], Iterator[memoryview], int] | None = None  # and its first piece

    def begin(self) -> None:
        """Make the next request, unless it is made, or the last one has long to go."""
        if self._next is not None or self._left > _SOON_BYTES:
            return
        if not self.requests:
            self._ask_for_more()
        if self.requests:
            near = self.requests.popleft()
            answer = _pieces(near)
            self._next = self._reader.begin(partial(next, answer)), answer, sum(end - begin for _, begin, end in near)

    def receive(self) -> None:
        """Receive the next piece, in the thread that calls; the first one of an answer may have come."""
        if self._left:
            piece = next(self._answer)
        else:
            assert self._next is not None, "each block that is taken was asked for"
            first, self._answer, self._left = self._next
            piece, self._next = first(), None
        self._pieces.append(piece)
        self.held += len(piece)
        self._left -= len(piece)
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


def _pieces(near: Sequence[Part]) -> Iterator[memoryview]:
    """Return the bytes of parts that come with one request, in pieces, without what lies between them."""
    file, begin, end = near[0]
    return file.pieces(begin, end) if len(near) == 1 else _without_gaps(near)


def _without_gaps(near: Sequence[Part]) -> Iterator[memoryview]:
    wanted, at = deque(near), near[0][1]
    for piece in near[0][0].pieces(at, near[-1][2]):
        after = at + len(piece)
        while wanted and wanted[0][1] < after:
            _, begin, end = wanted[0]
            yield piece[max(0, begin - at) : end - at]
            if end > after:
                break
            wanted.popleft()
        at = after
