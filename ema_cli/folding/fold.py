"""Bring checkpoints into the averages, block by block: read, multiply, add, round, write, forget.

Memory is a few buffers for each thread, whatever the number and size of the checkpoints. Blocks are independent of
each other, and every byte that enters is read once, however many averages are made of it; but a block in which
something is not finite is looked at once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint
from ema_cli.dtypes import DType
from ema_cli.errors import EmaError, NonFiniteError, option
from ema_cli.folding.blocks import Block, make_blocks, make_groups, read_pieces
from ema_cli.folding.buffers import Buffers, BufferSizes, Views
from ema_cli.folding.kernel.numpy_kernel import (
    Floats,
    components,
    decode,
    decode_pairs,
    encode,
    is_stored_as,
    is_within,
    keep_zeros,
    overflow_limit,
    settle_non_finite,
    sum_products,
    unpaired,
    work_dtype,
)
from ema_cli.folding.pace import Pace
from ema_cli.storage.checksums import Checksums
from ema_cli.system.threads import thread_errors

_TICK_SECONDS = 0.1

# Takes parts of one output, (name, first byte in the tensor, size) each, and their bytes one after another.
Write = Callable[[Sequence[tuple[str, int, int]], memoryview], None]


@dataclass(frozen=True, slots=True)
class Average:
    """One average to make: a weight for each checkpoint of the fold, oldest first, with sum 1, and where it goes.

    A checkpoint of weight 0 does not enter; the newest that enters gives integers. `non_finite` are the tensors in
    which NaN or infinity was let through, `infinite` those with an infinity that is equal in all checkpoints.
    """

    weights: Sequence[float]
    write: Write
    newest: int = field(init=False)
    non_finite: set[str] = field(default_factory=set)
    infinite: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        newest = max(number for number, weight in enumerate(self.weights) if weight)
        object.__setattr__(self, "newest", newest)


@dataclass(slots=True)
class Fold:
    """The averages of `checkpoints`, oldest first: all of them in one pass.

    `targets` gives the output dtype of each tensor by name, in the order in which the outputs hold them; those in
    `copied` come from the newest checkpoint, as do integers. Float dtypes may differ between checkpoints. `write` of
    each average is called once for each block of its output, from several threads. With `checksums`, what is read is
    summed up on the way. With `most_elements`, a multiple of 8, no more than these are made of each tensor, from the
    first. `give_up` is called where it ends early, before it waits for what `write` still does.

    An average is newest + sum w_k (x_k - newest): where all are equal it is exactly that value, and for neighbours,
    which checkpoints are, the difference is exact, so that little is lost. Where bfloat16 is averaged to bfloat16 it
    is the plain sum w_k x_k in float32: its error of some 1e-7 is far from showing after the rounding, and for equal
    values never does.

    Raises:
        NonFiniteError: unless `allow_non_finite`; names checkpoint and tensor.
        CheckpointError: where an input cannot be read.
    """

    checkpoints: Sequence[Checkpoint]
    averages: Sequence[Average]
    targets: Mapping[str, DType]
    sizes: BufferSizes = field(default_factory=BufferSizes)
    allow_non_finite: bool = False
    copied: frozenset[str] = frozenset()
    checksums: Checksums | None = None
    most_elements: int | None = None
    give_up: Callable[[], object] = lambda: None
    bytes_read: int = 0
    _groups: Sequence[range] = ()  # numbers of checkpoints that are added at once, from the newest down
    _newest: Sequence[int] = ()  # of each average, every number once, from the newest down
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _settler: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "settle"))
    _stopped: bool = False
    _readers: ThreadPoolExecutor | None = None
    _pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        step = self.sizes.rows
        last = len(self.checkpoints) - 1
        self._groups = [range(start, max(start - step, -1), -1) for start in range(last, -1, -step)]
        self._newest = sorted({average.newest for average in self.averages}, reverse=True)

    @property
    def non_finite(self) -> set[str]:
        """Return the tensors in which NaN or infinity was let through, in any of the averages."""
        return set().union(*(average.non_finite for average in self.averages))

    @property
    def bytes_total(self) -> int:
        """Return how many bytes will be read."""
        total = 0
        for group in make_groups(self.checkpoints, self.targets, self.copied, self.most_elements):
            numbers = range(len(self.checkpoints)) if group.averaged else self._newest
            for number in numbers:
                total += self.checkpoints[number].tensors.specs[group.names[0]].dtype.nbytes(group.count)
        return total

    def run(self, report: Callable[[int], None] = lambda _: None) -> None:
        """Fold everything; `report` is told, in this thread, how many bytes have been read so far."""
        groups = make_groups(self.checkpoints, self.targets, self.copied, self.most_elements)
        blocks = enumerate(make_blocks(self.checkpoints, groups, self.sizes.row_bytes))
        with ThreadPoolExecutor(self.sizes.most_workers, "fold") as pool:
            try:
                workers = self._start(pool, blocks, self.sizes.threads)
                number = len(workers)
                while workers:
                    done, workers = wait(workers, _TICK_SECONDS, FIRST_EXCEPTION)
                    for worker in done:
                        worker.result()
                    report(self.bytes_read)
                    if workers and self._pace.wants_more():
                        # Threads that wait need no processor: let more of them wait, and for several files each.
                        if self._readers is None:
                            self._readers = _start_readers(self.sizes.most_workers * self.sizes.rows)
                        more = min(number, self.sizes.most_workers - number)
                        with suppress(EmaError):  # where no more may be started, those that run go on
                            workers |= self._start(pool, blocks, more)
                        number += more
            except BaseException:
                self.give_up()
                raise
            finally:
                # However this ends (an error, Ctrl-C), the other workers stop at their next block.
                self._stopped = True
                if self.checksums is not None:
                    self.checksums.stop()
                self._settler.shutdown(wait=False)
                if self._readers is not None:
                    self._readers.shutdown()

    def _start(self, pool: ThreadPoolExecutor, blocks: Iterator[tuple[int, Block]], number: int) -> set[Future[None]]:
        with thread_errors():
            return {pool.submit(self._work, blocks) for _ in range(number)}

    def _work(self, blocks: Iterator[tuple[int, Block]]) -> None:
        buffers = Buffers(self.sizes, len(self.averages), len(self._newest))
        only = len(self.checkpoints) == 1
        with np.errstate(all="ignore"):
            while True:
                with self._lock:
                    taken = None if self._stopped else next(blocks, None)
                if taken is None:
                    return
                order, block = taken
                if block.averaged and not (only and block.target == block.dtypes[0]):
                    self._average(order, block, buffers)
                else:
                    self._copy(order, block, buffers)

    def _copy(self, order: int, block: Block, buffers: Buffers) -> None:
        """Write the block as the newest checkpoint of each average has it."""
        if self.checksums is not None:
            for number in range(len(self.checkpoints)):
                if number not in self._newest:
                    self.checksums.skip(number, order)
        for newest in self._newest:
            dtype = block.dtypes[newest]
            data = buffers.bytes(dtype.nbytes(block.count))
            read_pieces(self.checkpoints[newest].tensors, block.pieces, dtype, data.data)
            self._sum_up(newest, order, data.data, copied=not block.averaged)
            if block.averaged:
                self._check_copied(block, data, buffers)
            for average in self.averages:
                if average.newest == newest:
                    _write(average, block, dtype, data.data)
            self._count(len(data))

    def _check_copied(self, block: Block, data: NDArray[np.uint8], buffers: Buffers) -> None:
        dtype = block.dtypes[0]
        views = buffers.views(work_dtype([dtype]), block.count * components(dtype))
        values = views.sums[0, : views.count]
        decode(dtype, data, values)
        # Only NaN: an infinity is equal in all of one checkpoint.
        wrong = np.flatnonzero(np.isnan(values))
        infinite = np.isinf(values)

        def note() -> None:
            elements = np.flatnonzero(infinite) // components(dtype)
            for average in self.averages:
                self._note_infinite(average, block, elements)

        if infinite.any():
            self._settler.submit(note).result()  # see _settle
        for average in self.averages:
            self._non_finite(average, block, np.zeros_like(wrong), wrong // components(dtype))

    def _average(self, order: int, block: Block, buffers: Buffers) -> None:
        paired = all(dtype.name == "BF16" for dtype in block.dtypes)
        plain = paired and block.target.name == "BF16"
        views = buffers.views(work_dtype(block.dtypes), block.count * components(block.target))
        begun: set[int] = set()
        for numbers in self._groups:
            if self._stopped:
                return
            self._read_rows(order, block, numbers, views, paired=paired)
            self._add_rows(numbers, views, begun, plain=plain)
        for number, average in enumerate(self.averages):
            newest, total = views.newest[self._newest.index(average.newest)], views.sums[number]
            if not plain:
                np.add(newest, total, out=total)
            keep_zeros(total, newest)
            limit = overflow_limit(block.target, total.dtype)
            finite = is_within(total, limit)
            if not finite:
                self._settle(block, average, total, limit, paired=paired, plain=plain)
            data = encode(block.target, total, views.scratch, paired=paired, numbers=finite)
            _write(average, block, block.target, data[: block.target.nbytes(block.count)])
        self._count(sum(dtype.bits for dtype in block.dtypes) * block.count // 8)

    def _read_rows(self, order: int, block: Block, numbers: Sequence[int], views: Views, *, paired: bool) -> None:
        """Read the block of some checkpoints, and convert it to rows of floats."""
        rows, stored = views.rows[1 : len(numbers) + 1], views.stored[: len(numbers)]

        def read(row: int) -> None:
            weights, dtype = self.checkpoints[numbers[row]].tensors, block.dtypes[numbers[row]]
            if not paired and is_stored_as(dtype, rows.dtype):
                read_pieces(weights, block.pieces, dtype, views.row_bytes[row])
                self._sum_up(numbers[row], order, views.row_bytes[row])
                return
            raw = stored[row, : dtype.nbytes(block.count)]
            read_pieces(weights, block.pieces, dtype, raw.data)
            self._sum_up(numbers[row], order, raw.data)
            if not paired:
                with np.errstate(all="ignore"):  # which counts for this thread only
                    decode(dtype, raw, rows[row, : views.count])

        began, side_by_side = time.perf_counter(), self._readers
        if side_by_side is None:
            for row in range(len(numbers)):
                read(row)
        else:
            list(side_by_side.map(read, range(len(numbers))))
        each = (time.perf_counter() - began) / (1 if side_by_side else len(numbers))
        self._pace.note(len(numbers), each)
        # What pads a row must be numbers: it would be taken for a checkpoint's NaN.
        if paired:
            stored[:, views.count * 2 :] = 0
            decode_pairs(stored, rows)
        else:
            rows[:, views.count :] = 0

    def _add_rows(self, numbers: Sequence[int], views: Views, begun: set[int], *, plain: bool) -> None:
        """Add the rows of some checkpoints to each sum: themselves, or their differences to the newest."""
        for which, newest in enumerate(self._newest):
            if newest < numbers[-1]:
                continue  # what ends there has not begun
            base, rows = views.newest[which], views.rows
            if newest in numbers:
                np.copyto(base, rows[1 + numbers.index(newest)])
            if not plain:
                if views.spare is not None and which < len(self._newest) - 1:
                    rows = views.spare  # the next newest needs the rows as they are
                np.subtract(views.rows[1 : len(numbers) + 1], base, out=rows[1 : len(numbers) + 1])
            for number, average in enumerate(self.averages):
                weights = [average.weights[each] for each in numbers]
                if average.newest != newest or not any(weights):
                    continue
                total = views.sums[number]
                if number in begun:
                    np.copyto(rows[0], total)
                    sum_products(np.array([1.0, *weights], dtype=rows.dtype), rows[: len(numbers) + 1], total)
                else:
                    sum_products(np.array(weights, dtype=rows.dtype), rows[1 : len(numbers) + 1], total)
                    begun.add(number)

    def _settle(
        self, block: Block, average: Average, total: Floats, limit: float, *, paired: bool, plain: bool
    ) -> None:
        """Mend what only looked non-finite in `total`; what truly is, is an error, or noted."""

        def load(number: int) -> Floats:
            dtype = block.dtypes[number]
            raw = np.zeros(dtype.nbytes(len(total) // components(dtype)), dtype=np.uint8)
            stored = raw[: dtype.nbytes(block.count)].data
            read_pieces(self.checkpoints[number].tensors, block.pieces, dtype, stored)
            values = np.empty_like(total)
            if paired:
                decode_pairs(raw, values)
            else:
                decode(dtype, raw, values)
            return values

        def elements(indices: NDArray[np.intp]) -> NDArray[np.intp]:
            return unpaired(indices, len(total)) if paired else indices // components(block.target)

        def settle() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
            with np.errstate(all="ignore"):
                found, numbers = settle_non_finite(load, average.weights, total, limit, plain=plain)
            infinite = np.isinf(total)
            infinite[found] = False
            self._note_infinite(average, block, elements(np.flatnonzero(infinite)))
            return found, numbers

        # In a thread for that alone: it takes several times the memory of a row, which malloc keeps for its thread.
        found, numbers = self._settler.submit(settle).result()
        self._non_finite(average, block, numbers, elements(found))

    def _non_finite(
        self, average: Average, block: Block, numbers: NDArray[np.intp], elements: NDArray[np.intp]
    ) -> None:
        """Note the tensors that hold these elements of the block, or raise an error for the first."""
        if not len(elements):
            return
        if self.allow_non_finite:
            with self._lock:
                average.non_finite.update(block.names_of(elements))
            return
        first = int(elements.argmin())
        name, element = block.find(int(elements[first]))
        if numbers[first] < 0:
            raise NonFiniteError(
                f"'{name}' is too large for {block.target.name} at element {element} of the average",
                hint=f"write a wider type: {option('dtype', 'float32')} or bfloat16",
            )
        raise NonFiniteError(
            f"'{name}' is not finite at element {element}",
            subject=self.checkpoints[numbers[first]].path,
            hint=f"leave that checkpoint out ({option('start')}, {option('stop')}), or let "
            f"it pass with {option('allow_non_finite', True)}",
        )

    def _note_infinite(self, average: Average, block: Block, elements: NDArray[np.intp]) -> None:
        if len(elements):
            with self._lock:
                average.infinite.update(block.names_of(elements))

    def _sum_up(self, number: int, order: int, data: memoryview, *, copied: bool = False) -> None:
        if self.checksums is not None:
            self.checksums.add(number, order, data, copied=copied)

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.bytes_read += nbytes


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


def _write(average: Average, block: Block, dtype: DType, data: memoryview) -> None:
    """Hand over the block under the first name of each piece, then under those tied to it."""
    parts = [(piece.group.names[0], dtype.nbytes(piece.start), dtype.nbytes(piece.count)) for piece in block.pieces]
    average.write(parts, data)
    position = 0
    for piece, (_, start, size) in zip(block.pieces, parts, strict=True):
        for name in piece.group.names[1:]:
            average.write([(name, start, size)], data[position : position + size])
        position += size
