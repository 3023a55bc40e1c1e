"""Have the blocks come from a store in long requests: for each checkpoint one after another, over many blocks.

What costs a store, and whoever pays for it, is the request. One for each block would be small, or blocks large; so a
request goes on over all blocks of a stretch, and the next one follows. What comes of all checkpoints is taken in turns,
and what is not taken yet waits in the connections. Where these are ours, the kernel receives from them and adds; else
one thread takes the next block while another adds the last one where it lies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ema_cli.checkpoint import Checkpoint
from ema_cli.folding.block_task import BlockTask
from ema_cli.folding.buffers import Arrival, arrival
from ema_cli.folding.feed import Feed, FileRange
from ema_cli.folding.kernel import BlockSums
from ema_cli.folding.reading import FoldReader, Stopped
from ema_cli.folding.spans import spans_in
from ema_cli.storage.store.object_file import ObjectFile

Taken = dict[int, list[memoryview]]
"""A block in pieces, by checkpoint."""


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
        self._feeds = [Feed(reader, self._ask_for_more) for _ in reader.checkpoints]
        self._tasks: deque[tuple[BlockTask, bytes]] = deque()  # with a 1 for each checkpoint of which it comes
        # Of the block that is folded: what was taken; of each checkpoint of which more comes, how many bytes; and the
        # checkpoints that were added, of which it is lost where the sums are begun again.
        self._taken: Taken = {}
        self._coming: dict[int, int] = {}
        self._added: set[int] = set()
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
                    self._taken, self._coming, self._added = {}, sizes, set()
                    yield task
                    self._take_rest(task)  # where somebody did without it, too: the next block comes behind it
                    following = self._begin_next()
                else:
                    self._taken, self._coming, self._added = taken.result(), {}, set()
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
        self._reader.read(task, numbers, rows, self._taken, self._added)

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Add the blocks of these checkpoints where they lie; return False where they have to be summed up, too.

        Raises:
            SumsLost: where one of them does not come. It is read in another way now.
        """
        if self._reader.sums_up:
            return False
        if self._receive_and_add(numbers, sums):
            self._added.update(numbers)
            return True
        self._take_rest(task)
        if not all(number in self._taken for number in numbers):
            return False
        sums.add_pieces(numbers, [self._taken.pop(number) for number in numbers])
        self._added.update(numbers)
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
        came = False
        try:
            self._reader.receive_and_add(sums, numbers, descriptors, sizes)
            came = True
        finally:
            for number, feed, size in zip(numbers, feeds, sizes, strict=True):
                del self._coming[number]
                feed.skip(size) if came else feed.leap(size)
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
            feed.extend(each for ranges in row for each in ranges)
        self._tasks.extend(zip(stretch, (bytes(map(bool, each)) for each in zip(*rows, strict=True)), strict=True))


def _places(checkpoint: Checkpoint, number: int, tasks: Sequence[BlockTask]) -> list[list[FileRange]]:
    """Return where each block lies in a checkpoint: nothing where it is not read of it, or not all in objects."""
    found: list[list[FileRange]] = []
    for task in tasks:
        spans = None
        if task.block.averaged or number in task.weights.bases:
            spans = spans_in(ObjectFile, checkpoint.tensors, task.block.pieces, task.block.dtypes[number])
        found.append([(file, begin, begin + size) for file, begin, size in spans or ()])
    return found
