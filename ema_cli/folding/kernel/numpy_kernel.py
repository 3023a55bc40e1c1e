"""The arithmetic with numpy: rows of a few checkpoints at a time, each operation on whole rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.folding.kernel import (
    Kernel,
    Load,
    NonFiniteElements,
    ReadEnd,
    Spans,
    SumSpec,
    WorkspaceSize,
    copy_together,
    overflow_limit,
)
from ema_cli.folding.kernel.floats import (
    Floats,
    decode,
    decode_pairs,
    encode,
    is_stored_as,
    sum_dtype,
    unpaired,
)
from ema_cli.folding.kernel.numpy_buffers import Buffers
from ema_cli.folding.kernel.products import is_within, keep_zeros, sum_products
from ema_cli.folding.kernel.settling import settle


class NumpyKernel:
    """The kernel of numpy."""

    rows = 4
    row_bytes = 1 << 20  # smaller ones spend more time in calls, larger ones leave the cache

    def worker_bytes(self, size: WorkspaceSize) -> int:
        """Return the memory of one workspace."""
        return Buffers.nbytes(size)

    def workspace(self, size: WorkspaceSize) -> NumpyWorkspace:
        """Allocate a workspace."""
        return NumpyWorkspace(size)


NUMPY: Kernel = NumpyKernel()


class NumpyWorkspace:
    """The memory of one thread."""

    def __init__(self, size: WorkspaceSize) -> None:
        self._buffers = Buffers(size)

    def begin(self, spec: SumSpec) -> NumpySums:
        """Begin the sums of a block."""
        return NumpySums(spec, self._buffers)

    def stored(self, nbytes: int, offset: int) -> memoryview:
        """Return memory for a block that is copied."""
        return self._buffers.bytes(nbytes).data

    def is_finite(self, dtype: DType, stored: memoryview) -> bool:
        """Return whether a stored block holds neither NaN nor infinity."""
        return is_within(self._decoded(dtype, stored), np.inf)

    def find_non_finite(self, dtype: DType, stored: memoryview) -> NonFiniteElements:
        """Return what is not finite in a block of the only checkpoint."""
        values = self._decoded(dtype, stored)
        wrong = np.flatnonzero(np.isnan(values)) // dtype.components
        infinite = np.flatnonzero(np.isinf(values)) // dtype.components
        return NonFiniteElements(wrong=wrong, culprits=np.zeros_like(wrong), infinite=infinite)

    def _decoded(self, dtype: DType, stored: memoryview) -> Floats:
        count = len(stored) // dtype.itemsize * dtype.components
        values = self._buffers.views(sum_dtype([dtype]), count).sums[0, :count]
        with np.errstate(all="ignore"):
            decode(dtype, np.frombuffer(stored, np.uint8), values)
        return values


class NumpySums:
    """The sums of one block.

    Where all checkpoints store bfloat16, floats are in paired order from the reading to the rounding.
    """

    def __init__(self, spec: SumSpec, buffers: Buffers) -> None:
        self._spec = spec
        self._paired = all(dtype.name == "BF16" for dtype in spec.dtypes)
        self._plain = [spec.is_plain(average) for average in range(len(spec.weights.rows))]
        self._views = buffers.views(sum_dtype(spec.dtypes), spec.count * spec.target.components)
        self._limit = overflow_limit(spec.target, spec.dtypes)
        self._bases = spec.weights.bases
        self._begun: set[int] = set()  # averages with a sum so far
        self._finite: set[int] = set()

    def rows(self, numbers: Sequence[int], offsets: Sequence[int]) -> list[memoryview]:
        """Return the memory for the stored bytes of these checkpoints' blocks: numpy wants it aligned."""
        return [self._row(row, self._spec.dtypes[number]) for row, number in enumerate(numbers)]

    def _row(self, row: int, dtype: DType) -> memoryview:
        if self._is_stored_as_summed(dtype):
            return self._views.row_bytes[row]
        return self._views.stored[row, : dtype.nbytes(self._spec.count)].data

    def _is_stored_as_summed(self, dtype: DType) -> bool:
        return not self._paired and is_stored_as(dtype, self._views.sums.dtype)

    def add(self, numbers: Sequence[int]) -> None:
        """Add these checkpoints, whose bytes are in the rows, to the sums."""
        spec = self._spec
        with np.errstate(all="ignore"):
            self._decode_rows(numbers)
            for which, base in enumerate(self._bases):
                if base >= numbers[-1]:  # others begin further down
                    if base in numbers:
                        np.copyto(self._views.newest[which], self._views.rows[1 + numbers.index(base)])
                    averages = [number for number, newest in enumerate(spec.weights.newest) if newest == base]
                    plain = [average for average in averages if self._plain[average]]
                    self._add_terms(numbers, plain, self._views.rows)
                    if len(plain) < len(averages):
                        rest = [average for average in averages if not self._plain[average]]
                        self._add_terms(numbers, rest, self._differences(numbers, which))

    def reads(self, numbers: Sequence[int]) -> bool:
        """Return that it reads no files."""
        return False

    def read_and_add(self, numbers: Sequence[int], spans: Spans, stop: bytearray) -> ReadEnd:
        """Do nothing: `reads` says so."""
        raise NotImplementedError

    def add_pieces(self, numbers: Sequence[int], pieces: Sequence[Sequence[memoryview]]) -> None:
        """Add these checkpoints: the pieces are copied together."""
        for row, parts in zip(self.rows(numbers, [0] * len(numbers)), pieces, strict=True):
            copy_together(parts, row)
        self.add(numbers)

    def _decode_rows(self, numbers: Sequence[int]) -> None:
        """Convert the stored bytes to rows of floats. What pads a row must be numbers: NaN would count as its own."""
        views, spec = self._views, self._spec
        stored, rows = views.stored[: len(numbers)], views.rows[1 : len(numbers) + 1]
        if self._paired:
            stored[:, views.count * 2 :] = 0
            decode_pairs(stored, rows)
            return
        for row, number in enumerate(numbers):
            dtype = spec.dtypes[number]
            if not self._is_stored_as_summed(dtype):
                decode(dtype, stored[row, : dtype.nbytes(spec.count)], rows[row, : views.count])
        rows[:, views.count :] = 0

    def _differences(self, numbers: Sequence[int], which: int) -> Floats:
        """Return the differences to a base, after one free row. Nothing needs the values themselves afterwards."""
        newest, rows = self._views.newest[which], self._views.rows
        # In place, unless the next base needs the rows as they are.
        is_last = which == len(self._bases) - 1
        terms = rows if is_last or self._views.spare is None else self._views.spare
        used = slice(1, len(numbers) + 1)
        np.subtract(rows[used], newest, out=terms[used])
        return terms

    def _add_terms(self, numbers: Sequence[int], averages: Sequence[int], rows: Floats) -> None:
        """Add the terms to the sums of averages."""
        for average in averages:
            weights = [self._spec.weights.rows[average][number] for number in numbers]
            if not any(weights):
                continue
            total = self._views.sums[average]
            if average in self._begun:
                np.copyto(rows[0], total)
                sum_products(np.array([1.0, *weights], dtype=rows.dtype), rows[: len(numbers) + 1], total)
            else:
                sum_products(np.array(weights, dtype=rows.dtype), rows[1 : len(numbers) + 1], total)
                self._begun.add(average)

    def complete(self, average: int) -> bool:
        """Finish the sum of one average; return whether all of it is finite, and fits into the target."""
        total = self._views.sums[average]
        newest = self._views.newest[self._bases.index(self._spec.weights.newest[average])]
        with np.errstate(all="ignore"):
            if not self._plain[average]:
                np.add(newest, total, out=total)
            keep_zeros(total, newest)
        if is_within(total, self._limit):
            self._finite.add(average)
        return average in self._finite

    def settle(self, average: int, load: Load) -> NonFiniteElements:
        """Mend what only looks non-finite in a completed sum; return what is."""
        total = self._views.sums[average]
        weights = self._spec.weights.rows[average]
        with np.errstate(all="ignore"):
            wrong, culprits = settle(
                lambda number: self._values(number, load), weights, total, self._limit, plain=self._plain[average]
            )
        infinite = np.isinf(total)
        infinite[wrong] = False
        return NonFiniteElements(
            wrong=self._elements(wrong),
            culprits=culprits,
            infinite=self._elements(np.flatnonzero(infinite)),
        )

    def _values(self, number: int, load: Load) -> Floats:
        """Return the block of a checkpoint as floats, in the order of the sums, in new memory."""
        dtype, like = self._spec.dtypes[number], self._views.sums[0]
        stored = np.zeros(dtype.nbytes(len(like) // dtype.components), dtype=np.uint8)
        load(number, stored[: dtype.nbytes(self._spec.count)].data)
        values: Floats = np.empty_like(like)
        if self._paired:
            decode_pairs(stored, values)
        else:
            decode(dtype, stored, values)
        return values

    def _elements(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return which elements of the block are at `indices` of a sum."""
        if self._paired:
            return unpaired(indices, len(self._views.sums[0]))
        return indices // self._spec.target.components

    def encode(self, average: int) -> memoryview:
        """Return a completed average as it is stored."""
        total, target = self._views.sums[average], self._spec.target
        with np.errstate(all="ignore"):
            data = encode(target, total, self._views.scratch, paired=self._paired, numbers=average in self._finite)
        return data[: target.nbytes(self._spec.count)]
