"""The arithmetic on blocks of tensors, behind one interface, `Kernel`, of two kinds: `numpy_kernel`, `compiled_kernel`.

May import dtypes: it knows of no file, tensor or thread. The compiled kernel loads numpy where something is not finite,
and not before: to load it takes as long as all else that starts.

A thread sums up one block of all checkpoints, for one or several averages, in its workspace:

    sums = workspace.begin(spec)
    for numbers in [[5, 4, 3, 2], [1, 0]]:     # checkpoints, the newest first, a few at a time
        ...                                    # read the stored bytes of each into its row of sums.rows(...)
        sums.add(numbers)
    for average in range(averages):
        if not sums.complete(average):         # a NaN, an infinity, or too large for the target
            non_finite = sums.settle(average, load)
        stored = sums.encode(average)          # the bytes to write

Every kernel gives the same bytes, on every processor and for every size of a block. The rules, for each real number
(a complex one is two of them), with w_k and x_k the weight and the value in checkpoint k, and n the newest checkpoint
that enters:

1. Stored numbers are converted exactly to the type of the sum: float64 if a checkpoint stores the block as F64 or
   C128, else float32. Weights are rounded to that type.
2. average = x_n + sum of w_k (x_k - x_n), from the newest checkpoint to the oldest. Each difference, product and sum
   is rounded for itself: a fused multiply-add would round otherwise. Where all x_k are equal, the average is exactly
   that value; for neighbours, which checkpoints are, the differences are exact, so that little is lost.
3. Where all checkpoints store the block as BF16, so does the output, and no weight is negative, it is the plain sum of
   w_k x_k in float32, whose error of some 1e-7 does not show after rounding. Negative weights would multiply it.
   Weights whose sum is not 1 always make the plain sum: rule 2 would not hold.
4. A zero has the sign that it has in x_n, where that is zero too.
5. What is not finite is settled as `settling.settle` says.
6. The average is rounded once to the target: to nearest, ties to even.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType

if TYPE_CHECKING:
    from array import array

    import numpy as np
    from numpy.typing import NDArray

NOBODY = -1
"""In place of a checkpoint to blame, where only the average is too large for the target."""

_ROUNDED = 1e-12  # of the size of weights

Load = Callable[[int, memoryview], None]
"""Takes the number of a checkpoint and memory, and fills it with the stored bytes of the block in that checkpoint."""


@dataclass(frozen=True, slots=True)
class WeightTable:
    """The weights of one or several averages: `rows[a][k]` is that of checkpoint k in average a, the oldest first.

    `newest[a]` is the number of the newest checkpoint that enters average a: whose weight is not 0. `normal[a]` is
    whether its weights sum to 1, `negative[a]` whether one of them is below 0.
    """

    rows: tuple[tuple[float, ...], ...]
    newest: tuple[int, ...]
    normal: tuple[bool, ...]
    negative: tuple[bool, ...]

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> WeightTable:
        """Return the table of these weights, a sequence for each average."""
        kept = tuple(map(tuple, rows))
        return cls(
            kept,
            tuple(max(number for number, weight in enumerate(row) if weight) for row in kept),
            tuple(map(sum_to_1, kept)),
            tuple(min(row) < 0 for row in kept),
        )

    @property
    def bases(self) -> list[int]:
        """Return the different numbers among `newest`, the newest first."""
        return sorted(set(self.newest), reverse=True)


def sum_to_1(weights: Sequence[float]) -> bool:
    """Return whether weights sum to 1, but for their own rounding."""
    return abs(math.fsum(weights) - 1) <= _ROUNDED * (1 + math.fsum(map(abs, weights)))


@dataclass(frozen=True, slots=True)
class SumSpec:
    """What is summed up in one block.

    Attributes:
        count: elements in the block.
        dtypes: the dtype in which each checkpoint stores them, the oldest first: floating or complex.
        target: the dtype in which the averages are stored.
        weights: of each average and checkpoint.
    """

    count: int
    dtypes: Sequence[DType]
    target: DType
    weights: WeightTable

    def is_plain(self, average: int) -> bool:
        """Return whether an average is the plain sum of values, instead of one of differences to the newest: rule 3."""
        table = self.weights
        if not table.normal[average]:
            return True
        return not table.negative[average] and all(dtype.name == "BF16" for dtype in {*self.dtypes, self.target})


@dataclass(frozen=True, slots=True)
class NonFiniteElements:
    """Which elements of a block of an average are not finite, by their position in the block, from 0.

    wrong [n]: NaN, infinite in some checkpoints only, or too large for the target. A complex element can come twice.
    culprits [n]: for each the number of the oldest checkpoint in which it is not finite; NOBODY where all are finite.
    infinite [m]: those with an infinity that is equal in all checkpoints, as in an attention mask, and is kept.
    """

    wrong: NDArray[np.intp]
    culprits: NDArray[np.intp]
    infinite: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the stored bytes of several checkpoints' blocks lie in open files, or come from connections.

    Attributes:
        offsets: where in its file the block of each checkpoint begins.
        numbers: of each span a descriptor, its first byte there, and its bytes; those of a checkpoint one after
            another. Of a connection the first byte is -1: the next ones are taken.
        counts: how many spans each checkpoint has.
    """

    offsets: Sequence[int]
    numbers: array[int]
    counts: array[int]


@dataclass(frozen=True, slots=True)
class ReadEnd:
    """How the reading of spans ended.

    Attributes:
        seconds: that all reads took.
        span: the number of the span whose bytes could not be read; below 0 where all were, or `stop` was set.
        offset: where in its file.
        error: the system's number for the reason; 0 where the file ends there.
    """

    seconds: float
    span: int
    offset: int
    error: int


class BlockSums(Protocol):
    """The sums of one block, while checkpoints are added."""

    def rows(self, numbers: Sequence[int], offsets: Sequence[int]) -> list[memoryview]:
        """Return the memory for the stored bytes of these checkpoints' blocks: `dtype.nbytes(count)` for each.

        Args:
            numbers: at most `WorkspaceSize.rows` of them, falling, and going on where those before ended.
            offsets: where in its file each block begins, as far as that is known; 0 else. Memory that lies as the file
                does, modulo 64, is filled faster.
        """

    def add(self, numbers: Sequence[int]) -> None:
        """Add these checkpoints, whose bytes are in the rows that were last returned for them, to the sums."""

    def reads(self, numbers: Sequence[int]) -> bool:
        """Return whether `read_and_add` takes these checkpoints; a kernel that reads no files takes none."""

    def read_and_add(self, numbers: Sequence[int], spans: Spans, stop: bytearray) -> ReadEnd:
        """Read these checkpoints' blocks and add them, in place of `rows` and `add`; end soon where `stop` becomes 1.

        Where it ends early the sums are lost.
        """

    def add_pieces(self, numbers: Sequence[int], pieces: Sequence[Sequence[memoryview]]) -> None:
        """Add these checkpoints, in place of `rows` and `add`.

        Args:
            numbers: as for `rows`.
            pieces: of each the bytes of its block, in pieces that may end anywhere.
        """

    def complete(self, average: int) -> bool:
        """Finish the sum of one average; return whether all of it is finite, and fits into the target."""

    def settle(self, average: int, load: Load) -> NonFiniteElements:
        """Mend what only looks non-finite in a completed sum; return what is. Takes several times a row's memory."""

    def encode(self, average: int) -> memoryview:
        """Return a completed average as it is stored: `target.nbytes(count)` bytes, valid until the next call."""


class Workspace(Protocol):
    """The memory of one thread, allocated once and used again for each block."""

    def begin(self, spec: SumSpec) -> BlockSums:
        """Begin the sums of a block; those of the block before end."""

    def stored(self, nbytes: int, offset: int) -> memoryview:
        """Return memory for a block that is copied as it is stored: at most a row; `offset` as for `rows`."""

    def is_finite(self, dtype: DType, stored: memoryview) -> bool:
        """Return whether a stored block holds neither NaN nor infinity."""

    def find_non_finite(self, dtype: DType, stored: memoryview) -> NonFiniteElements:
        """Return what is not finite in a block of the only checkpoint, in which each infinity counts as equal."""


@dataclass(frozen=True, slots=True)
class WorkspaceSize:
    """How much one thread holds at once.

    Attributes:
        rows: checkpoints that are read before they are added.
        row_bytes: bytes of one block of one checkpoint, in the type of the sum.
        averages: averages that are made at once.
        bases: different newest checkpoints among these.
        stored_bytes: the most bytes of such a block as it is stored; 0 where that may be `row_bytes`.
    """

    rows: int
    row_bytes: int
    averages: int
    bases: int
    stored_bytes: int = 0


class Kernel(Protocol):
    """One way to do the arithmetic.

    Attributes:
        rows, row_bytes: the `WorkspaceSize` with which it is fastest.
    """

    @property
    def rows(self) -> int: ...

    @property
    def row_bytes(self) -> int: ...

    def worker_bytes(self, size: WorkspaceSize) -> int:
        """Return the memory of one workspace."""

    def workspace(self, size: WorkspaceSize) -> Workspace:
        """Allocate a workspace."""


def copy_together(pieces: Iterable[memoryview], row: memoryview) -> None:
    """Fill `row` with pieces, one after another."""
    position = 0
    for piece in pieces:
        row[position : position + len(piece)] = piece
        position += len(piece)


def sums_in_float64(dtypes: Iterable[DType]) -> bool:
    """Return whether blocks stored in these dtypes are summed up in float64, else in float32: rule 1."""
    return any(dtype.component_bits > 32 for dtype in set(dtypes))


def overflow_limit(target: DType, dtypes: Iterable[DType]) -> float:
    """Return the magnitude from which on a sum of blocks stored in `dtypes` becomes infinite when rounded to `target`.

    Infinity where no number of the sum's type does. For F16 it is 65520, halfway from its largest number, 65504, to
    65536.
    """
    largest = sys.float_info.max if sums_in_float64(dtypes) else (2 - 2.0**-23) * 2.0**127
    return math.inf if target.overflow > largest else target.overflow


def sum_bytes(dtypes: Sequence[DType]) -> int:
    """Return the bytes of one element in the type of the sum."""
    return (8 if sums_in_float64(dtypes) else 4) * dtypes[-1].components
