"""Fold checkpoints into averages, block by block: read, multiply, add, round, write, forget.

Here are the threads only. `blocks` says what a block is, `stretches` hands them out, `block_task` says what is done of
one, `kernel` how the arithmetic goes, and a `Sink` takes the bytes. Memory is a few buffers for each thread, whatever
the number and size of the checkpoints. Every byte is read once, however many averages are made of it; but a block in
which something is not finite is read once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.errors import EmaError
from ema_cli.folding.block_task import BlockTask, Reader, run_block
from ema_cli.folding.blocks import bytes_to_read, in_file_order, make_blocks, make_groups
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.kernel import Kernel, NonFiniteElements, WeightTable, Workspace
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.folding.non_finite import NonFinite
from ema_cli.folding.reading import FoldReader, Stopped
from ema_cli.folding.sample import Selection
from ema_cli.folding.sink import Sink, write_block
from ema_cli.folding.stretches import Stretches
from ema_cli.storage.checksums import Checksums
from ema_cli.system.descriptors import raise_limit
from ema_cli.system.memory import keep_freed
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.system.threads import thread_errors

if TYPE_CHECKING:
    from ema_cli.folding.ahead import Ahead

_TICK_SECONDS = 0.1
# Bytes a second of one connection: sixteen that are faster are near, and wait for processors, or fill the line.
_NEAR_RATE = 64 << 20
_LEAST_IDLE = 0.5  # processors: where none is, it is they that are waited for
_PATIENCE_SECONDS = 2
_OTHER_DESCRIPTORS = 1024  # outputs, and all else that is open besides connections to a store


@dataclass(frozen=True, slots=True)
class Average:
    """One average to make.

    Attributes:
        weights: one for each checkpoint, the oldest first; their sum is 1. A checkpoint of weight 0 does not enter. The
            newest that enters gives the tensors that are copied.
        sink: where the bytes go.
    """

    weights: Sequence[float]
    sink: Sink


@dataclass(frozen=True, slots=True)
class Factored:
    """How near the product of A and B comes to the average of the products, as a share of its Frobenius norm.

    Attributes:
        rank: of A and B.
        error: of all modules together.
        furthest: the module that is off most, and by how much.
    """

    rank: int
    error: float
    furthest: tuple[str, float]


@dataclass(frozen=True, slots=True)
class Folded:
    """What a fold has done: how many bytes it read, and of each average what is not finite, and what was factored."""

    bytes_read: int
    non_finite: Sequence[NonFinite]
    factored: Sequence[Factored] = ()


def fold(
    checkpoints: Sequence[Checkpoint],
    averages: Sequence[Average],
    targets: Mapping[str, DType],
    *,
    copied: frozenset[str] = frozenset(),
    allow_non_finite: bool = False,
    sample: Selection | None = None,
    sizes: BufferSizes | None = None,
    checksums: Checksums | None = None,
    kernel: Kernel | None = None,
    check: Callable[[], None] | None = None,
    progress: ProgressCallback = no_progress,
) -> Folded:
    """Make all averages of the checkpoints in one pass.

    The bytes are the same for any `sizes`: neither the number of threads nor the size of a block shows in them.

    Args:
        checkpoints: the oldest first. Floating dtypes may differ between them.
        averages: their weights, and where their bytes go; each sink is given every byte of its output once.
        targets: the output dtype of each tensor by name, in the order in which the outputs hold them.
        copied: names of tensors that come from the newest checkpoint, as integers do.
        allow_non_finite: whether NaN and infinity are let through.
        sample: make only these elements of each tensor.
        sizes: threads, and their memory.
        checksums: takes what is read, to sum it up.
        kernel: the arithmetic; None for that of this process.
        check: called before each block, in the thread that folds it; what it raises ends the fold.
        progress: called in this thread with the bytes read so far, and in all.

    Raises:
        NonFiniteError: unless `allow_non_finite`; names checkpoint and tensor.
        CheckpointError: where an input cannot be read.
    """
    kernel = kernel or chosen_kernel().kernel
    sizes = sizes or BufferSizes(1, 1, kernel.rows, kernel.row_bytes)
    weights = WeightTable.of(average.weights for average in averages)
    groups = partial(make_groups, checkpoints, targets, copied, sample)
    ordered = groups()
    if sizes.window and checksums is None:
        ordered = in_file_order(checkpoints[-1], ordered, sizes.window)
    blocks = make_blocks(checkpoints, ordered, sizes.row_bytes, sizes.stored_bytes)
    reader = FoldReader(checkpoints, checksums)
    ledgers = [NonFinite(checkpoints, allowed=allow_non_finite) for _ in averages]
    total = bytes_to_read(checkpoints, groups(), weights.bases)
    tasks = (BlockTask(number, block, weights, sizes.rows) for number, block in enumerate(blocks))
    workers = _Workers(
        stretches=Stretches(tasks, sizes, len(checkpoints), total),
        sinks=[average.sink for average in averages],
        reader=reader,
        ledgers=ledgers,
        make_workspace=partial(kernel.workspace, sizes.workspace(len(averages), len(weights.bases))),
        sizes=sizes,
        check=check,
    )
    workers.run(lambda: progress(reader.bytes_read, total))
    return Folded(reader.bytes_read, ledgers)


@dataclass(slots=True)
class _Workers:
    """The threads of one fold. Each takes the next block again and again, until none is left or one of them fails."""

    stretches: Stretches
    sinks: Sequence[Sink]
    reader: FoldReader
    ledgers: Sequence[NonFinite]
    make_workspace: Callable[[], Workspace]
    sizes: BufferSizes
    check: Callable[[], None] | None = None
    # One thread for all that takes several times the memory of a row, which malloc keeps for the thread.
    _settler: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "settle"))

    def run(self, tick: Callable[[], None]) -> None:
        """Fold all blocks; call `tick` now and then."""
        pool, workers = ThreadPoolExecutor(self.sizes.most_workers, "fold"), set[Future[None]]()
        if self.sizes.ahead:
            keep_freed()
            raise_limit(_OTHER_DESCRIPTORS + self.sizes.most_connections)
            self.reader.pace.slow_seconds = self.sizes.stored_bytes / _NEAR_RATE
            self.reader.pace.least_idle = _LEAST_IDLE
        try:
            number, last, may_grow = self.sizes.threads, 0, True
            if self.sizes.waits:
                self.reader.read_side_by_side(self.sizes.most_readers)
            self._start(pool, workers, number)
            while workers:
                done, workers = wait(workers, _TICK_SECONDS, FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
                tick()
                if workers and may_grow and self.reader.pace.wants_more():
                    # Threads that wait need no processor: let more of them wait, and for several files each.
                    self.reader.read_side_by_side(self.sizes.most_readers)
                    more = min(number, self.sizes.most_workers - number)
                    try:
                        self._start(pool, workers, more)
                        last = more
                    except EmaError:  # no more may be started: those that run go on, and none is given up
                        may_grow = False
                    number += more
                elif may_grow and self.sizes.waits and self.reader.pace.was_in_vain:
                    self.stretches.end(last)  # what brings nothing costs the store, and is given up again
                    may_grow = False
        except BaseException:
            for sink in self.sinks:
                sink.give_up()
            raise
        finally:
            # However this ends (an error, Ctrl-C), the other workers stop at their next block.
            self.reader.stop()
            self._settler.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=self._have_ended(workers))

    def _have_ended(self, workers: set[Future[None]]) -> bool:
        """Wait until the workers have ended, but not long for those that read: a store may not answer for minutes."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while workers and (time.monotonic() < deadline or len(workers) > self.reader.reading):
            _, workers = wait(workers, _TICK_SECONDS)
        return not workers

    def _start(self, pool: ThreadPoolExecutor, workers: set[Future[None]], number: int) -> None:
        """Start so many workers, and add each to those that are waited for, also where the next cannot be started."""
        with thread_errors():
            for _ in range(number):
                self.stretches.threads += 1
                workers.add(pool.submit(self._work, self._ahead()))

    def _ahead(self) -> Ahead | None:
        """Return what reads ahead for a worker; None where each block is read when it is folded."""
        if not self.sizes.ahead:
            return None
        from ema_cli.folding.ahead import Ahead  # which only who reads from a store needs

        return Ahead(self.reader, self._next_tasks)

    def _work(self, ahead: Ahead | None) -> None:
        workspace = self.make_workspace()
        with suppress(Stopped):
            if ahead is not None:
                for task in ahead.tasks():
                    self._fold(task, ahead, workspace)
                return
            while tasks := self._next_tasks():
                for task in tasks:
                    self._fold(task, self.reader, workspace)

    def _fold(self, task: BlockTask, reader: Reader, workspace: Workspace) -> None:
        if self.check is not None:
            self.check()
        if task.is_copied:
            self.reader.skip_unread(task)
        for output in run_block(task, reader, workspace, self._settle):
            if output.non_finite is not None:
                self.ledgers[output.average].note(task.block, output.non_finite)
            write_block(self.sinks[output.average], task.block, output.dtype, output.data)

    def _next_tasks(self) -> list[BlockTask]:
        """Return the next blocks for one thread; none where it is to end."""
        return [] if self.reader.is_stopped else self.stretches.take()

    def _settle(self, function: Callable[[], NonFiniteElements]) -> NonFiniteElements:
        """Return what the function returns, which reads again: from a store, it may wait for that for minutes.

        Raises:
            Stopped: where the fold has ended.
        """
        with thread_errors():
            result = self._settler.submit(function)
        while not wait([result], _TICK_SECONDS).done:
            if self.reader.is_stopped:
                raise Stopped
        return result.result()
