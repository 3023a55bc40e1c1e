"""Read for all threads of a fold: count what is read, sum it up, and wait for several files at once on a slow disk."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from ema_cli.checkpoint import Checkpoint
from ema_cli.folding.block_task import BlockTask, CheckpointReader, SumsLost
from ema_cli.folding.kernel import BlockSums, Spans, copy_together
from ema_cli.folding.pace import Pace
from ema_cli.folding.spans import read_and_add
from ema_cli.storage.checksums import Checksums

Read = TypeVar("Read")


class Stopped(Exception):
    """The fold has ended, with an error in another thread or an interrupt."""


class FoldReader(CheckpointReader):
    """Reads blocks of checkpoints for several threads.

    `bytes_read` counts each byte once, however often it is looked at again. With `checksums`, what is read is summed
    up on the way. `pace` knows how long reads take.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], checksums: Checksums | None) -> None:
        super().__init__(checkpoints)
        self.bytes_read = 0
        self.pace = Pace()
        self._checksums = checksums
        self._lock = threading.Lock()
        self.reading = 0  # threads that read now
        self._stop = bytearray(1)  # 1 where the fold has ended
        self._side_by_side: ThreadPoolExecutor | None = None

    def read(
        self,
        task: BlockTask,
        numbers: Sequence[int],
        rows: Sequence[memoryview],
        come: Mapping[int, Sequence[memoryview]] = MappingProxyType({}),
        added: Container[int] = (),
    ) -> None:
        """Fill each row with the block of a checkpoint.

        Args:
            task: the block.
            numbers: the checkpoints.
            rows: one for each.
            come: the blocks of checkpoints that were read before, and counted, in pieces.
            added: checkpoints whose blocks were counted, too, and are read again.

        Raises:
            Stopped: where the fold has ended.
        """
        pool = self._side_by_side
        new = [number not in come and number not in added for number in numbers]
        with self.counted([len(row) for row, is_new in zip(rows, new, strict=True) if is_new]):
            if pool is None:
                for number, row in zip(numbers, rows, strict=True):
                    self._read_row(task, come, number, row)
            else:
                list(pool.map(partial(self._read_row, task, come), numbers, rows))

    def begin(self, read: Callable[[], Read]) -> Callable[[], Read]:
        """Begin to read, in a thread of its own where there is one, and return what waits for what is read.

        Raises:
            Stopped: where the fold has ended; what is returned raises it, too.
        """
        pool = self._side_by_side
        if pool is None:
            return read
        try:
            future = pool.submit(read)
        except RuntimeError:  # the pool takes no more
            raise Stopped from None

        def result() -> Read:
            try:
                return future.result()
            except CancelledError:
                raise Stopped from None

        return result

    @property
    def sums_up(self) -> bool:
        """Return whether what is read is summed up."""
        return self._checksums is not None

    @property
    def is_stopped(self) -> bool:
        """Return whether the fold has ended."""
        return self._stop[0] == 1

    @contextmanager
    def counted(self, sizes: Sequence[int]) -> Iterator[None]:
        """Count bytes that are read, and the time that waits for them; let this thread end if the fold has ended."""
        began = time.perf_counter() - time.thread_time()
        with self._reads():
            yield
        if not sizes:
            return
        seconds = time.perf_counter() - time.thread_time() - began
        self.pace.note(len(sizes), seconds if self._side_by_side is not None else seconds / len(sizes))
        with self._lock:
            self.bytes_read += sum(sizes)

    @contextmanager
    def _reads(self) -> Iterator[None]:
        """Count this thread among those that read, and let it end if the fold ended meanwhile."""
        with self._lock:
            if self._stop[0]:
                raise Stopped
            self.reading += 1
        try:
            yield
        finally:
            with self._lock:
                self.reading -= 1
        if self._stop[0]:
            raise Stopped

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Read the blocks of these checkpoints and add them, if that can be done at once; return whether it was.

        It cannot where they are summed up or waited for, or lie in too many files.

        Raises:
            Stopped: where the fold has ended.
        """
        if self._checksums is not None or self._side_by_side is not None:
            return False
        rows = self._spans(task, numbers, sums)
        if rows is None:
            return False
        with self._reads(), self.naming(task, numbers):
            end = read_and_add(sums, numbers, rows, self._stop)
        if end is None:
            return False
        self.pace.note(len(numbers), end.seconds / len(numbers))
        with self._lock:
            self.bytes_read += sum(size for row in rows for _, _, size in row)
        return True

    def receive_and_add(
        self, sums: BlockSums, numbers: Sequence[int], descriptors: Sequence[int], sizes: Sequence[int]
    ) -> None:
        """Receive the blocks of these checkpoints from connections, so many bytes of each, and add them.

        Raises:
            SumsLost: where not all of them come.
            Stopped: where the fold has ended.
        """
        table = array(
            "q", [number for pair in zip(descriptors, sizes, strict=True) for number in (pair[0], -1, pair[1])]
        )
        spans = Spans([0] * len(numbers), table, array("q", [1] * len(numbers)))
        with self.counted(sizes):
            if sums.read_and_add(numbers, spans, self._stop).span >= 0:
                raise SumsLost

    def _read_row(
        self, task: BlockTask, come: Mapping[int, Sequence[memoryview]], number: int, row: memoryview
    ) -> None:
        if number in come:
            copy_together(come[number], row)
        else:
            self.read_again(task, number, row)
        if self._checksums is not None:
            self._checksums.add(number, task.number, row, copied=not task.block.averaged)

    def skip_unread(self, task: BlockTask) -> None:
        """Pass over the checkpoints from which a copied block is not read, in the checksums."""
        if self._checksums is not None:
            for number in range(len(self.checkpoints)):
                if number not in task.weights.bases:
                    self._checksums.skip(number, task.number)

    def read_side_by_side(self, threads: int) -> None:
        """Read the rows of a block at once from now on, if so many threads can be started."""
        if self._side_by_side is None:
            self._side_by_side = _start_readers(threads)

    def stop(self) -> None:
        """End the reading in all threads, as soon as each comes to its next read."""
        self._stop[0] = 1
        if self._checksums is not None:
            self._checksums.stop()
        if self._side_by_side is not None:
            # What is not begun is not waited for either: those before it may wait for a store that does not answer.
            self._side_by_side.shutdown(wait=False, cancel_futures=True)


def _start_readers(number: int) -> ThreadPoolExecutor | None:
    """Return a pool whose threads all run already, None where so many cannot be started."""
    pool, gate = ThreadPoolExecutor(number, "read"), threading.Event()
    try:
        for _ in range(number):
            pool.submit(gate.wait)
    except RuntimeError:
        pool.shutdown(wait=False)
        return None
    finally:
        gate.set()
    return pool
