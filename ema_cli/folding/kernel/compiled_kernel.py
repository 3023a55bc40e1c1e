"""The arithmetic in C, compiled.c: all checkpoints of a block in one pass over their bytes, rounding included.

What is not finite goes numpy's way: the C code only says that an average holds such elements, and `rounded` reads them
again. Imported only where the extension is built. No numpy, unless something is not finite.
"""

from __future__ import annotations

import math
import mmap
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

from ema_cli.dtypes import DType
from ema_cli.folding.kernel import (
    Load,
    NonFiniteElements,
    ReadEnd,
    Spans,
    SumSpec,
    WorkspaceSize,
    _compiled,
    overflow_limit,
    sums_in_float64,
)

Arguments = tuple[
    int, tuple[memoryview, ...], bytes, "array[float]", tuple[memoryview, ...], bytes, bytes, tuple[memoryview, ...],
    int, int, bool, bool, float, bool,
]  # fmt: skip
MOST_AVERAGES = 32  # of one call, as in compiled_variants.h
# On some processors the system copies five times slower to memory that lies a few bytes further in a page than what is
# copied. What lies as its file does, modulo this, never does.
_PLACES = 64
# Between rows: the places, and that addresses that differ by a power of two would share few lines of a cache.
_STAGGER = 17 * _PLACES
# Of a row that is read and added at once: sixteen of them lie in a processor's caches. Larger ones come from memory
# again, smaller ones take more calls of the system.
_STRETCH = 1 << 18
# The same of a row that lies in pieces in memory: what spans two pieces is copied, and that is to be little of all.
_STRETCH_OF_PIECES = 1 << 15


_INTERFACE = 2  # as in compiled.c


def is_of_this_version() -> bool:
    """Return whether the extension is of this source: an update of that alone leaves an older one."""
    return getattr(_compiled, "INTERFACE", None) == _INTERFACE


def variants() -> list[tuple[int, str]]:
    """Return number and name of each variant that this processor runs, the best first."""
    return _compiled.variants()


class CompiledKernel:
    """The kernel in C, in one of its variants."""

    rows = 16
    row_bytes = 1 << 21

    def __init__(self, variant: int) -> None:
        self._variant = variant

    def worker_bytes(self, size: WorkspaceSize) -> int:
        """Return the memory of one workspace."""
        return _Memory.nbytes(size)

    def workspace(self, size: WorkspaceSize) -> CompiledWorkspace:
        """Allocate a workspace."""
        return CompiledWorkspace(size, self._variant)


class _Memory:
    """One thread's memory: rows as they are stored, those of the newest checkpoints, and a sum for each average.

    An average takes the place of its sum.
    """

    def __init__(self, size: WorkspaceSize) -> None:
        # Mapped, so that the system has it back as soon as nobody uses it: malloc may keep what a thread freed.
        try:
            mapped = mmap.mmap(-1, self.nbytes(size), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(str(error)) from error
        ends = [0, *accumulate(self._widths(size))]
        every = [memoryview(mapped)[start:end] for start, end in pairwise(ends)]
        self.rows = every[: size.rows]
        self.newest = every[size.rows : size.rows + size.bases]
        self.sums = every[size.rows + size.bases :]

    @staticmethod
    def _widths(size: WorkspaceSize) -> list[int]:
        """Return the bytes of each row: those that are stored, and then the sums."""
        stored = (size.stored_bytes or size.row_bytes) + _STAGGER
        return [stored] * (size.rows + size.bases) + [size.row_bytes + _STAGGER] * size.averages

    @staticmethod
    def nbytes(size: WorkspaceSize) -> int:
        """Return the memory of buffers of this size."""
        return sum(_Memory._widths(size))


class CompiledWorkspace:
    """The memory of one thread."""

    def __init__(self, size: WorkspaceSize, variant: int) -> None:
        self._memory = _Memory(size)
        self._variant = variant

    def begin(self, spec: SumSpec) -> CompiledSums:
        """Begin the sums of a block."""
        return CompiledSums(spec, self._memory, self._variant)

    def stored(self, nbytes: int, offset: int) -> memoryview:
        """Return memory for a block that is copied."""
        return _placed(self._memory.rows[0], nbytes, offset)

    def is_finite(self, dtype: DType, stored: memoryview) -> bool:
        """Return whether a stored block holds neither NaN nor infinity."""
        kind, count = bytes([_kind(dtype)]), len(stored) // dtype.itemsize * dtype.components
        wide, rows = sums_in_float64([dtype]), (stored,)
        return not _compiled.add(
            self._variant, rows, kind, array("d", [1.0]), rows, kind, b"\1", (self._memory.sums[0],),
            count, kind[0], wide, True, math.inf, True,
        )  # fmt: skip

    def find_non_finite(self, dtype: DType, stored: memoryview) -> NonFiniteElements:
        """Return what is not finite in a block of the only checkpoint."""
        from ema_cli.folding.kernel.numpy_kernel import NUMPY

        nbytes = 2 * len(stored)  # of 16-bit numbers, as floats
        return NUMPY.workspace(WorkspaceSize(1, nbytes, 1, 1)).find_non_finite(dtype, stored)


class CompiledSums:
    """The sums of one block."""

    def __init__(self, spec: SumSpec, memory: _Memory, variant: int) -> None:
        self._spec = spec
        self._memory = memory
        self._variant = variant
        self._count = spec.count * spec.target.components
        self._wide = sums_in_float64(spec.dtypes)
        self._plain = [spec.is_plain(average) for average in range(len(spec.weights.rows))]
        self._limit = overflow_limit(spec.target, spec.dtypes)
        self._newest = dict(zip(spec.weights.bases, memory.newest, strict=False))
        self._rows: list[memoryview] = []
        self._begun: set[int] = set()  # averages with a sum so far
        self._beyond: set[int] = set()  # averages that are not below the limit everywhere

    def rows(self, numbers: Sequence[int], offsets: Sequence[int]) -> list[memoryview]:
        """Return the memory for the stored bytes of these checkpoints' blocks."""
        self._rows = []
        for row, number, offset in zip(self._memory.rows, numbers, offsets, strict=False):
            nbytes = self._spec.dtypes[number].nbytes(self._spec.count)
            if number in self._newest:  # needed until the end
                row = self._newest[number] = _placed(self._newest[number], nbytes, offset)
            else:
                row = _placed(row, nbytes, offset)
            self._rows.append(row)
        return self._rows

    def add(self, numbers: Sequence[int]) -> None:
        """Add these checkpoints, whose bytes are in the rows, to the sums; round these after the last."""
        for averages in self._calls(numbers):
            self._note(averages, _compiled.add(*self._arguments(numbers, averages)))

    def reads(self, numbers: Sequence[int]) -> bool:
        """Return whether `read_and_add` takes these checkpoints."""
        return len(self._calls(numbers)) == 1

    def read_and_add(self, numbers: Sequence[int], spans: Spans, stop: bytearray) -> ReadEnd:
        """Read these checkpoints' blocks and add them, a stretch of all after the other."""
        (averages,) = self._calls(numbers)
        self.rows(numbers, spans.offsets)
        beyond, nanoseconds, span, offset, error = _compiled.read_and_add(
            self._arguments(numbers, averages),
            spans.numbers,
            spans.counts,
            bytes(number in self._newest for number in numbers),
            _STRETCH // self._widest(),
            stop,
        )
        self._note(averages, beyond)
        return ReadEnd(nanoseconds * 1e-9, span, offset, error)

    def add_pieces(self, numbers: Sequence[int], pieces: Sequence[Sequence[memoryview]]) -> None:
        """Add these checkpoints, whose blocks lie in pieces in memory of others."""
        self.rows(numbers, [0] * len(numbers))
        every, counts = tuple(piece for row in pieces for piece in row), array("q", map(len, pieces))
        keeps = bytes(number in self._newest for number in numbers)
        for averages in self._calls(numbers):
            arguments = self._arguments(numbers, averages)
            self._note(
                averages, _compiled.add_pieces(arguments, every, counts, keeps, _STRETCH_OF_PIECES // self._widest())
            )

    def _widest(self) -> int:
        """Return the bytes of the widest number of the block in any checkpoint."""
        return max(dtype.component_bits for dtype in set(self._spec.dtypes)) // 8

    def _calls(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the averages into which these checkpoints may enter: as many as one call takes, plain ones apart."""
        begun = [average for average, newest in enumerate(self._spec.weights.newest) if newest >= numbers[-1]]
        calls = []
        for plain in (True, False):
            alike = [average for average in begun if self._plain[average] is plain]
            calls += [alike[start : start + MOST_AVERAGES] for start in range(0, len(alike), MOST_AVERAGES)]
        return calls

    def _arguments(self, numbers: Sequence[int], averages: Sequence[int]) -> Arguments:
        """Return the arguments of both of the extension's calls."""
        table, spec = self._spec.weights, self._spec
        bases = [table.newest[average] for average in averages]
        return (
            self._variant,
            tuple(self._rows),
            bytes(_kind(spec.dtypes[number]) for number in numbers),
            array("d", [table.rows[average][number] for average in averages for number in numbers]),
            tuple(self._newest[base] for base in bases),
            bytes(_kind(spec.dtypes[base]) for base in bases),
            bytes(average not in self._begun for average in averages),
            tuple(self._memory.sums[average] for average in averages),
            self._count,
            _kind(spec.target),
            self._wide,
            self._plain[averages[0]],
            self._limit,
            numbers[-1] == 0,
        )

    def _note(self, averages: Sequence[int], beyond: int) -> None:
        """Note that something was added to these averages, and which of them are not below the limit everywhere."""
        self._begun.update(averages)
        self._beyond.update(average for bit, average in enumerate(averages) if beyond >> bit & 1)

    def complete(self, average: int) -> bool:
        """Return whether all of an average is finite, and fits into the target."""
        return average not in self._beyond

    def settle(self, average: int, load: Load) -> NonFiniteElements:
        """Mend what only looks non-finite in an average; return what is."""
        from ema_cli.folding.kernel.rounded import settle_rounded

        weights = self._spec.weights.rows[average]
        return settle_rounded(self.encode(average), self._spec, weights, load, plain=self._plain[average])

    def encode(self, average: int) -> memoryview:
        """Return a completed average as it is stored."""
        return self._memory.sums[average][: self._spec.target.nbytes(self._spec.count)]


def _placed(memory: memoryview, nbytes: int, offset: int) -> memoryview:
    """Return so many bytes of the memory, which is aligned to pages, or staggered: at the place of `offset`."""
    start = offset % _PLACES
    return memory[start : start + nbytes]


@cache  # asked for each row of each block
def _kind(dtype: DType) -> int:
    """Return compiled.c's number for the way in which the numbers of a dtype are stored."""
    if dtype.component_bits == 16:
        return ("BF16", "F16").index(dtype.name)
    return 2 if dtype.component_bits == 32 else 3
