"""Measure the distances of one checkpoint from any number of others, in one pass and constant memory.

The numbers are the same for any number of threads: a tensor is cut into stretches, and these into blocks, of fixed
sizes, and their sums are added in order. Tied tensors are read once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.comparing.distance import DistanceSums, ValueBlock
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.folding.blocks import Group, make_groups
from ema_cli.folding.kernel.floats import decode
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.system.threads import thread_errors

_BLOCK = 1 << 15  # elements, which are read and added at once
_STRETCH = 1 << 22  # elements, which one thread reads
_WAITING = 4  # stretches for each thread: no more results wait for their turn


def comparison_kind(one: TensorSpec, other: TensorSpec) -> Literal["values", "bytes"] | None:
    """Return how two tensors are compared: by their values, only for equal bytes, or not at all.

    Integers and packed numbers are compared for equality: their differences mean nothing.
    """
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return None
    if one.dtype.averaged:
        return "values"
    return "bytes" if one.dtype == other.dtype else None


def comparable_names(one: Checkpoint, others: Iterable[Checkpoint]) -> list[str]:
    """Return the names of the tensors of `one` that can be compared with each of the others."""
    tables: list[Mapping[str, TensorSpec]] = []  # the different ones: those of one model are one object
    for checkpoint in others:
        if not any(table is checkpoint.tensors.specs for table in tables):
            tables.append(checkpoint.tensors.specs)
    return [
        name
        for name, spec in one.tensors.specs.items()
        if all(name in table and comparison_kind(spec, table[name]) is not None for table in tables)
    ]


def measure(
    one: Checkpoint,
    others: Sequence[Checkpoint],
    names: Sequence[str],
    *,
    threads: int = 1,
    progress: ProgressCallback = no_progress,
) -> Iterator[tuple[tuple[str, ...], DistanceSums]]:
    """Yield the sums of each tensor, with all names that are tied to it in all checkpoints.

    Args:
        one: the checkpoint that is compared with each of the others.
        others: the others. A tensor must be comparable with that of each.
        names: the tensors to compare, in the order in which they are yielded.
        threads: how many read side by side.
        progress: called with the bytes read so far, and in all.

    Raises:
        CheckpointError: where a checkpoint cannot be read, or changes meanwhile.
    """
    checkpoints = [*others, one]
    targets = {name: one.tensors.specs[name].dtype for name in names}
    groups = list(make_groups(checkpoints, targets, frozenset()))
    total = sum(checkpoint.tensors.specs[group.names[0]].nbytes for group in groups for checkpoint in checkpoints)
    done, sums = 0, DistanceSums.zero(len(others))
    for stretch, added in _measured_in_order(one, others, groups, threads):
        sums.add(added)
        done += sum(stretch.nbytes(checkpoint) for checkpoint in checkpoints)
        progress(done, total)
        if stretch.ends_tensor:
            yield stretch.group.names, sums
            sums = DistanceSums.zero(len(others))
    for checkpoint in checkpoints:
        for file in checkpoint.files:
            file.check_unchanged()


@dataclass(frozen=True, slots=True)
class _Stretch:
    """`count` elements of a tensor, from element `start`."""

    group: Group
    start: int
    count: int

    @property
    def ends_tensor(self) -> bool:
        """Return whether it is the last of its tensor."""
        return self.start + self.count == self.group.spec.count

    def nbytes(self, checkpoint: Checkpoint) -> int:
        """Return how many bytes a checkpoint stores for it."""
        return checkpoint.tensors.specs[self.group.names[0]].dtype.nbytes(self.count)


def _stretches(groups: Iterable[Group]) -> Iterator[_Stretch]:
    """Yield the stretches of all tensors: one for a tensor without elements, too."""
    for group in groups:
        for start in range(0, max(group.spec.count, 1), _STRETCH):
            yield _Stretch(group, start, min(_STRETCH, group.spec.count - start))


def _measured_in_order(
    one: Checkpoint, others: Sequence[Checkpoint], groups: Iterable[Group], threads: int
) -> Iterator[tuple[_Stretch, DistanceSums]]:
    """Yield the sums of each stretch in order, while threads measure the next ones."""
    stretches = _stretches(groups)
    waiting: deque[tuple[_Stretch, Future[DistanceSums]]] = deque()
    pool = ThreadPoolExecutor(threads, "distance")
    try:
        while True:
            for stretch in islice(stretches, threads * _WAITING - len(waiting)):
                with thread_errors():
                    waiting.append((stretch, pool.submit(_measure_stretch, one, others, stretch)))
            if not waiting:
                return
            stretch, sums = waiting.popleft()
            yield stretch, sums.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _measure_stretch(one: Checkpoint, others: Sequence[Checkpoint], stretch: _Stretch) -> DistanceSums:
    """Return the sums of a stretch, block by block in order."""
    name, averaged = stretch.group.names[0], stretch.group.averaged
    sums = DistanceSums.zero(len(others))
    buffers = _Buffers(min(_BLOCK, stretch.count), stretch.group.spec.dtype)
    for done in range(0, stretch.count, _BLOCK):
        start, count = stretch.start + done, min(_BLOCK, stretch.count - done)
        stored, dtype = _read(one, name, start, count, buffers.stored_one)
        block = buffers.block(dtype, stored) if averaged else None
        for index, other in enumerate(others):
            stored_other, dtype_other = _read(other, name, start, count, buffers.stored_other)
            if sums.equal[index]:
                sums.equal[index] = dtype_other == dtype and np.array_equal(stored, stored_other)
            if block is not None:
                sums.add_block(index, block, buffers.other_values(dtype_other, stored_other))
    return sums


class _Buffers:
    """Memory for one block of two checkpoints: as stored, as float64, and for the sums."""

    def __init__(self, count: int, dtype: DType) -> None:
        most_bytes = 16 * count  # of the widest dtype: it may differ between checkpoints
        self.stored_one = np.empty(most_bytes, dtype=np.uint8)
        self.stored_other = np.empty(most_bytes, dtype=np.uint8)
        self._one = np.empty(count * dtype.components)
        self._other = np.empty(count * dtype.components)
        self._scratch = np.empty((2, count * dtype.components))

    def block(self, dtype: DType, stored: NDArray[np.uint8]) -> ValueBlock:
        """Return the stored block of the one checkpoint as values."""
        length = len(stored) // dtype.itemsize * dtype.components
        decode(dtype, stored, self._one[:length])
        return ValueBlock.of(self._one[:length], self._scratch[:, :length], dtype.components)

    def other_values(self, dtype: DType, stored: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the stored block of another checkpoint as values."""
        values = self._other[: len(stored) // dtype.itemsize * dtype.components]
        decode(dtype, stored, values)
        return values


def _read(
    checkpoint: Checkpoint, name: str, start: int, count: int, out: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], DType]:
    """Return `count` stored elements of a tensor from element `start`, which are read to `out`, and their dtype."""
    dtype = checkpoint.tensors.specs[name].dtype
    stored = out[: dtype.nbytes(count)]
    checkpoint.tensors.read_into(name, dtype.nbytes(start), stored.data)
    return stored, dtype
