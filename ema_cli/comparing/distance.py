"""How far apart checkpoints are: one and any number of others, tensor by tensor, in one pass and constant memory.

In float64, whatever the stored types. The same numbers for any number of threads: a tensor is cut into stretches and
these into blocks of fixed sizes, whose sums are added in their order. Tied tensors are read once.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dtypes import DType
from ema_cli.folding.blocks import Group, make_groups
from ema_cli.folding.kernel.floats import Floats, decode
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.system.threads import thread_errors

_BLOCK = 1 << 15  # numbers, which are read and added at once
_STRETCH = 1 << 22  # numbers, which one thread reads
_WAITING = 4  # stretches for each thread: of results that wait for their turn there are no more


@dataclass(slots=True)
class Sums:
    """What distances are made of, of one tensor or of many; each is a row with a value for each of the others.

    `squares` [3, N]: of |one - other|, |one| and |other|; `products` [N]: of one and other; `largest` [N]: difference
    of two values; `equal` [N]: whether all bytes are. `not_finite` [2, N]: NaN, and infinities that the two do not
    share, in one and in other; with any of them the sums are NaN or infinite. Shared infinities (an attention mask)
    do not count.
    """

    squares: Floats
    products: Floats
    largest: Floats
    equal: NDArray[np.bool_]
    not_finite: NDArray[np.int64]

    @classmethod
    def zero(cls, others: int) -> Sums:
        """Return the sums of nothing."""
        return cls(
            np.zeros((3, others)),
            np.zeros(others),
            np.zeros(others),
            np.ones(others, dtype=bool),
            np.zeros((2, others), dtype=np.int64),
        )

    def add(self, more: Sums) -> None:
        """Add the sums of what comes next."""
        with np.errstate(all="ignore"):
            self.squares += more.squares
            self.products += more.products
            np.maximum(self.largest, more.largest, out=self.largest)
        self.equal &= more.equal
        self.not_finite += more.not_finite

    def distances(self) -> list[Distance]:
        """Return the distance to each of the others."""
        return [
            Distance.of(*map(float, (*self.squares[:, at], self.products[at], self.largest[at])))
            for at in range(len(self.products))
        ]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far `one` is from `other`: the norm of the difference, and that as a share of the norm of `other`.

    None where there is no such number: relative to 0, or the direction of 0. NaN where the data are.
    """

    distance: float
    norm_one: float
    norm_other: float
    relative: float | None
    cosine: float | None
    largest: float

    @classmethod
    def of(cls, difference: float, one: float, other: float, product: float, largest: float) -> Distance:
        """Return it from sums of squares and products."""
        distance, norm, base = math.sqrt(difference), math.sqrt(one), math.sqrt(other)
        relative = distance / base if base else (None if distance else 0.0)
        cosine = None if norm == 0 or base == 0 else product / norm / base
        if cosine is not None and not math.isnan(cosine):
            cosine = 1.0 if distance == 0 else min(max(cosine, -1.0), 1.0)
        return cls(distance, norm, base, relative, cosine, largest)


def by_value(one: TensorSpec, other: TensorSpec) -> bool | None:
    """Return whether two tensors are compared as numbers, or for equality only; None if they are of two kinds.

    Integers and what is packed are compared for equality: their differences mean nothing.
    """
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return None
    if one.dtype.averaged:
        return True
    return False if one.dtype == other.dtype else None


def comparable(one: Checkpoint, others: Iterable[Checkpoint]) -> list[str]:
    """Return the names of the tensors that can be compared with each of the others."""
    tables = {id(each.tensors.specs): each.tensors.specs for each in others}
    return [
        name
        for name, spec in one.tensors.specs.items()
        if all(name in specs and by_value(spec, specs[name]) is not None for specs in tables.values())
    ]


def measure(
    one: Checkpoint,
    others: Sequence[Checkpoint],
    names: Sequence[str],
    *,
    threads: int = 1,
    report: ProgressCallback = no_progress,
) -> Iterator[tuple[tuple[str, ...], Sums]]:
    """Yield the sums of each tensor in `names`, with the names that are tied to it in all checkpoints, in that order.

    `report(done, total)` is told the bytes that have been read.

    Raises:
        CheckpointError: where one cannot be read, or changes meanwhile.
    """
    checkpoints = [*others, one]
    specs = one.tensors.specs
    groups = list(make_groups(checkpoints, {name: specs[name].dtype for name in names}, frozenset()))
    total = sum(each.tensors.specs[group.names[0]].nbytes for group in groups for each in checkpoints)
    done = 0
    buffers = threading.local()
    work = ((group, start) for group in groups for start in range(0, max(group.spec.count, 1), _STRETCH))
    waiting: deque[tuple[Group, int, Future[Sums]]] = deque()
    pool = ThreadPoolExecutor(threads, "distance")
    try:
        sums = Sums.zero(len(others))
        while True:
            for group, start in islice(work, threads * _WAITING - len(waiting)):
                waiting.append((group, start, _submit(pool, partial(_stretch, one, others, group, start, buffers))))
            if not waiting:
                break
            group, start, result = waiting.popleft()
            sums.add(result.result())
            count = min(_STRETCH, group.spec.count - start)
            done += sum(each.tensors.specs[group.names[0]].dtype.nbytes(count) for each in checkpoints)
            report(done, total)
            if start + _STRETCH >= group.spec.count:
                yield group.names, sums
                sums = Sums.zero(len(others))
    finally:
        pool.shutdown(cancel_futures=True)
    for each in checkpoints:
        for file in each.files:
            file.check_unchanged()


def _submit(pool: ThreadPoolExecutor, stretch: Callable[[], Sums]) -> Future[Sums]:
    with thread_errors():
        return pool.submit(stretch)


class _Buffers:
    """One thread's memory: for a block of two checkpoints as stored, as numbers, and what comes of them."""

    def __init__(self) -> None:
        self.stored = np.empty((2, _BLOCK * 16), dtype=np.uint8)
        self.numbers = np.empty((4, _BLOCK * 2))


def _stretch(one: Checkpoint, others: Sequence[Checkpoint], group: Group, start: int, local: threading.local) -> Sums:
    """Return the sums of a stretch of a tensor, block by block in order."""
    buffers: _Buffers | None = getattr(local, "buffers", None)
    if buffers is None:
        buffers = local.buffers = _Buffers()
    name, sums = group.names[0], Sums.zero(len(others))
    end = min(start + _STRETCH, group.spec.count)
    for at in range(start, end, _BLOCK):
        count = min(_BLOCK, end - at)
        mine, dtype = _read(one, name, at, count, buffers.stored[0])
        if group.averaged:
            parts = count * dtype.components
            number, theirs, *scratch = (row[:parts] for row in buffers.numbers)
            decode(dtype, mine, number)
            own = _total(number, number, scratch[1])
        for index, other in enumerate(others):
            stored, its = _read(other, name, at, count, buffers.stored[1])
            if sums.equal[index]:
                sums.equal[index] = its == dtype and np.array_equal(mine, stored)
            if group.averaged:
                decode(its, stored, theirs)
                _add(sums, index, number, theirs, own, scratch, parts=dtype.components)
    return sums


def _read(
    checkpoint: Checkpoint, name: str, start: int, count: int, out: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], DType]:
    dtype = checkpoint.tensors.specs[name].dtype
    stored = out[: dtype.nbytes(count)]
    checkpoint.tensors.read_into(name, dtype.nbytes(start), stored.data)
    return stored, dtype


def _add(
    sums: Sums, index: int, one: Floats, other: Floats, own: float, scratch: Sequence[Floats], *, parts: int
) -> None:
    """Add a block of two checkpoints to the sums at `index`; `own` is the sum of squares of `one`."""
    with np.errstate(all="ignore"):
        found = _block_sums(one, other, own, scratch, parts)
        if not all(map(math.isfinite, found)):
            shared = ~np.isfinite(one) & (one == other)
            if shared.any():
                one, other = np.where(shared, 0.0, one), np.where(shared, 0.0, other)
                found = _block_sums(one, other, _total(one, one, scratch[1]), scratch, parts)
            for row, values in enumerate((one, other)):
                sums.not_finite[row, index] += np.count_nonzero(~np.isfinite(values).reshape(-1, parts).all(axis=1))
        sums.squares[:, index] += found[:3]
        sums.products[index] += found[3]
        sums.largest[index] = np.maximum(sums.largest[index], found[4])


def _block_sums(one: Floats, other: Floats, own: float, scratch: Sequence[Floats], parts: int) -> tuple[float, ...]:
    """Return the sums of squares of the difference and of both, of their products, and the largest difference."""
    difference, product = scratch
    np.subtract(one, other, out=difference)
    found = (_total(difference, difference, product), own, _total(other, other, product), _total(one, other, product))
    sizes = np.hypot(difference[0::2], difference[1::2]) if parts == 2 else np.abs(difference, out=difference)
    return (*found, float(sizes.max()))


def _total(left: Floats, right: Floats, scratch: Floats) -> float:
    """Return the sum of products. Not a dot product of BLAS: that adds in an order of its own on each processor."""
    with np.errstate(all="ignore"):
        np.multiply(left, right, out=scratch)
        return float(np.add.reduce(scratch))
