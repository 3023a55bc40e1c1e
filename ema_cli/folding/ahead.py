"""Have the blocks come from a store before they are folded: for each checkpoint one request after another.

What costs a store, and whoever pays for it, is the request. One for each block would be small, or blocks large; so a
request goes on over all blocks of a stretch, and the next one follows. A thread for each checkpoint takes what comes,
in pieces, and the thread that folds adds them where they lie. What is not taken yet waits in the connection.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.folding.block_task import BlockTask
from ema_cli.folding.direct import spans_in
from ema_cli.folding.kernel import BlockSums, copy_together
from ema_cli.folding.reading import FoldReader, Stopped
from ema_cli.storage.objects import ObjectFile
from ema_cli.storage.ranges import NARROW_BYTES

Part = tuple[ObjectFile, int, int]
"""Bytes of a file: the first, and the one behind the last."""

_LOOK_SECONDS = 0.1  # between looks whether the fold has ended


@dataclass(slots=True)
class _Feed:
    """What comes of one checkpoint.

    todo: the stretches that are not asked for yet.
    pieces: what has come and is not taken.
    held: bytes in these.
    wanted: bytes that somebody waits for; 0 where nobody does.
    error: why no more comes.
    """

    todo: deque[Sequence[BlockTask]] = field(default_factory=deque)
    pieces: deque[memoryview] = field(default_factory=deque)
    held: int = 0
    wanted: int = 0
    error: BaseException | None = None


class Ahead:
    """The blocks that one thread folds, and what comes of them from a store; a `Reader`."""

    def __init__(self, reader: FoldReader, next_stretch: Callable[[], Sequence[BlockTask]], most_held: int) -> None:
        """Start the threads. They take no block before somebody takes the `tasks`: it might be folded by nobody.

        Args:
            reader: reads what does not lie in objects, and what is read again.
            next_stretch: returns the next blocks for this thread, one after another; none where there are no more.
            most_held: bytes of a checkpoint that may lie here before they are folded, at least a block.

        Raises:
            RuntimeError: where so many threads cannot be started.
        """
        self._reader = reader
        self._next_stretch = next_stretch
        self._most_held = most_held
        self._feeds = [_Feed() for _ in reader.checkpoints]
        self._tasks: deque[BlockTask] = deque()
        self._has_ended = False
        self._error: BaseException | None = None  # why the next blocks are not known
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._arrived = threading.Condition(self._lock)
        self._lacking = 0  # feeds of which more is wanted than has come
        self._pool, self._begun = ThreadPoolExecutor(len(self._feeds), "ahead"), threading.Event()
        for number in range(len(self._feeds)):
            self._pool.submit(self._feed, number)

    def tasks(self) -> Iterator[BlockTask]:
        """Yield the blocks, in their order; raise what making them raised, in whatever thread."""
        self._begun.set()
        try:
            while True:
                with self._lock:
                    if not self._tasks:
                        self._ask_for_more()
                    if not self._tasks and self._error is not None:
                        raise self._error
                    if not self._tasks:
                        return
                    task = self._tasks.popleft()
                yield task
        finally:
            self._pool.shutdown(wait=False)

    def offset(self, task: BlockTask, number: int) -> int:
        """Return where in its file the block of a checkpoint begins; 0 where that is not known."""
        return self._reader.offset(task, number)

    def read(self, task: BlockTask, numbers: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the block of a checkpoint."""
        self._reader.read(task, numbers, rows, self._fill)

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Add the blocks of these checkpoints where they lie; return False where they have to be summed up, too."""
        if self._reader.sums_up or not all(_parts(self._reader.checkpoints, number, task) for number in numbers):
            return False
        sizes = [task.block.dtypes[number].nbytes(task.block.count) for number in numbers]
        with self._reader.counted(sizes), self._reader.naming(task, numbers):
            pieces = self._take(numbers, sizes)
        sums.add_pieces(numbers, pieces)
        return True

    def read_again(self, task: BlockTask, number: int, row: memoryview) -> None:
        """Fill the row with a block that has been read before."""
        self._reader.read_again(task, number, row)

    def _fill(self, task: BlockTask, number: int, row: memoryview) -> bool:
        """Fill the row with the block of a checkpoint; return False where it does not come ahead."""
        if not _parts(self._reader.checkpoints, number, task):
            return False
        (pieces,) = self._take([number], [len(row)])
        copy_together(pieces, row)
        return True

    def _take(self, numbers: Sequence[int], sizes: Sequence[int]) -> list[list[memoryview]]:
        """Return the next bytes of these checkpoints, in pieces.

        Raises:
            CheckpointError: where they cannot be read.
            Stopped: where the fold has ended.
        """
        with self._lock:
            feeds = [self._feeds[number] for number in numbers]
            for feed, size in zip(feeds, sizes, strict=True):
                if feed.held < size:
                    feed.wanted = size
                    self._lacking += 1
            while any(feed.held < size for feed, size in zip(feeds, sizes, strict=True)):
                for feed in feeds:
                    if feed.error is not None and feed.held < feed.wanted:
                        raise feed.error
                self._check()
                self._arrived.wait(_LOOK_SECONDS)
            found = [_taken(feed, size) for feed, size in zip(feeds, sizes, strict=True)]
            self._room.notify_all()
        return found

    def _feed(self, number: int) -> None:
        """Have the bytes of one checkpoint come, in the order of the blocks."""
        feed = self._feeds[number]
        try:
            while not self._begun.wait(_LOOK_SECONDS):
                self._check()
            while stretch := self._stretch(feed):
                parts = (part for task in stretch for part in _parts(self._reader.checkpoints, number, task))
                for near in _near(parts):
                    for piece in _pieces(near):
                        self._put(feed, piece)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            with self._lock:
                feed.error = error
                self._arrived.notify_all()

    def _stretch(self, feed: _Feed) -> Sequence[BlockTask]:
        """Return the next blocks of which a checkpoint is to be read; none where there are no more."""
        with self._lock:
            if not feed.todo:
                self._ask_for_more()
            return feed.todo.popleft() if feed.todo else ()

    def _ask_for_more(self) -> None:
        """Take the next stretch for this thread, if there is one. Called with the lock."""
        if self._has_ended:
            return
        try:
            stretch = self._next_stretch()
        except BaseException as error:
            self._error, self._has_ended = error, True
            raise
        self._has_ended = not stretch
        self._tasks.extend(stretch)
        for feed in self._feeds:
            if stretch:
                feed.todo.append(stretch)

    def _put(self, feed: _Feed, piece: memoryview) -> None:
        """Add what has come to a feed, when there is room for it."""
        with self._lock:
            while feed.held >= self._most_held:
                self._check()
                self._room.wait(_LOOK_SECONDS)
            feed.pieces.append(piece)
            feed.held += len(piece)
            if feed.wanted and feed.held >= feed.wanted:
                feed.wanted = 0
                self._lacking -= 1
                if not self._lacking:
                    self._arrived.notify_all()

    def _check(self) -> None:
        if self._reader.is_stopped:
            raise Stopped


def _taken(feed: _Feed, size: int) -> list[memoryview]:
    """Take so many bytes out of a feed that holds them."""
    found = []
    feed.held -= size
    while size:
        piece = feed.pieces.popleft()
        if len(piece) > size:
            feed.pieces.appendleft(piece[size:])
            piece = piece[:size]
        size -= len(piece)
        found.append(piece)
    return found


def _parts(checkpoints: Sequence[Checkpoint], number: int, task: BlockTask) -> list[Part]:
    """Return where the block lies in a checkpoint; nothing where it is not read of it, or not all in objects."""
    if not task.block.averaged and number not in task.weights.bases:
        return []
    spans = spans_in(ObjectFile, checkpoints[number].tensors, task.block.pieces, task.block.dtypes[number])
    return [(file, begin, begin + size) for file, begin, size in spans or ()]


def _near(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Yield the parts in lists, each of those that come with one request: in one file, in order, with narrow gaps."""
    near: list[Part] = []
    for part in parts:
        if near and (part[0] is not near[-1][0] or not 0 <= part[1] - near[-1][2] <= NARROW_BYTES):
            yield near
            near = []
        near.append(part)
    if near:
        yield near


def _pieces(near: Sequence[Part]) -> Iterator[memoryview]:
    """Yield the bytes of parts that come with one request, in pieces, without what lies between them."""
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
