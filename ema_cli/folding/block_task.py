"""One block of a fold: read it, sum it up, round it.

A block depends on no other. What is done of it follows from a `BlockTask`, which can be pickled, and from the opened
checkpoints: another process that opens the same files gets the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

from ema_cli.checkpoint import Checkpoint, Tensors
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.errors import CheckpointError
from ema_cli.folding.blocks import Block, Piece
from ema_cli.folding.kernel import BlockSums, NonFiniteElements, SumSpec, WeightTable, Workspace
from ema_cli.folding.spans import Span, name_tensor, read_and_add, spans_in
from ema_cli.storage.local_file import LocalFile
from ema_cli.storage.ranges import join_ranges, read_ranges

Aside = Callable[[Callable[[], NonFiniteElements]], NonFiniteElements]
"""Calls a function that takes several times the memory of a row."""


@dataclass(frozen=True, slots=True)
class BlockTask:
    """What is to be done of one block, as data.

    Attributes:
        number: the position of the block in the order of the outputs, from 0.
        block: which elements of which tensors.
        weights: of each average and checkpoint.
        rows: checkpoints to read before they are added: at most those of the workspace. They do not show in the bytes.
    """

    number: int
    block: Block
    weights: WeightTable
    rows: int

    @property
    def is_copied(self) -> bool:
        """Return whether the block is written as it is stored: a lone checkpoint of weight 1 is, in its own dtype."""
        dtypes = self.block.dtypes
        return not self.block.averaged or (
            len(dtypes) == 1 and dtypes[0] == self.block.target and all(self.weights.normal)
        )


@dataclass(frozen=True, slots=True)
class BlockOutput:
    """The bytes of a block in one average.

    Attributes:
        average: the number of the average.
        dtype: the dtype in which the bytes are stored.
        data: the bytes; they are valid until the next output is asked for.
        non_finite: the elements that are not finite; None where all are.
    """

    average: int
    dtype: DType
    data: memoryview
    non_finite: NonFiniteElements | None


class SumsLost(Exception):
    """Some of what was to be added to the sums of a block did not come: they have to be begun again."""


class Reader(Protocol):
    """Reads blocks of opened checkpoints."""

    def offset(self, task: BlockTask, number: int) -> int:
        """Return where in its file the block of a checkpoint begins; 0 where that is not known."""

    def read(self, task: BlockTask, numbers: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the block of a checkpoint, as it is stored.

        Raises:
            CheckpointError: where a checkpoint cannot be read.
        """

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Read the blocks of these checkpoints and add them, if that can be done at once; return whether it was.

        Raises:
            CheckpointError: where a checkpoint cannot be read.
            SumsLost: where it is to be read in another way. That is not raised twice of one checkpoint.
        """

    def read_again(self, task: BlockTask, number: int, row: memoryview) -> None:
        """Fill the row with a block that has been read before."""


class CheckpointReader:
    """Reads blocks of checkpoints, one after another."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.checkpoints = checkpoints

    def offset(self, task: BlockTask, number: int) -> int:
        """Return where in its file the block of a checkpoint begins; 0 where that is not known."""
        first = task.block.pieces[0]
        start = task.block.dtypes[number].nbytes(first.start)
        return self.checkpoints[number].tensors.offset(first.group.names[0], start)

    def read(self, task: BlockTask, numbers: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the block of a checkpoint."""
        for number, row in zip(numbers, rows, strict=True):
            self.read_again(task, number, row)

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Read the blocks of these checkpoints and add them, where kernel and files allow it; return whether."""
        rows = self._spans(task, numbers, sums)
        if rows is None:
            return False
        with self.naming(task, numbers):
            return read_and_add(sums, numbers, rows, bytearray(1)) is not None

    def _spans(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> list[list[Span[LocalFile]]] | None:
        """Return the spans of the block in each checkpoint; None where kernel or files do not allow it."""
        rows: list[list[Span[LocalFile]]] = []
        if not sums.reads(numbers):
            return None
        for number in numbers:
            tensors, block = self.checkpoints[number].tensors, task.block
            spans = spans_in(LocalFile, tensors, block.pieces, block.dtypes[number])
            if spans is None:
                return None
            rows.append(spans)
        return rows

    def read_again(self, task: BlockTask, number: int, row: memoryview) -> None:
        """Fill the row with the block of one checkpoint."""
        with self.naming(task, [number]):
            _read_pieces(self.checkpoints[number].tensors, task.block.pieces, task.block.dtypes[number], row)

    @contextmanager
    def naming(self, task: BlockTask, numbers: Sequence[int]) -> Iterator[None]:
        """Name the tensor in an error that says which byte of a file cannot be read."""
        try:
            yield
        except CheckpointError as error:
            for number in numbers:
                name_tensor(error, self.checkpoints[number].tensors, task.block.pieces, task.block.dtypes[number])
            raise


def run_block(
    task: BlockTask, reader: Reader, workspace: Workspace, aside: Aside = lambda function: function()
) -> Iterator[BlockOutput]:
    """Yield the bytes of a block, for each average once.

    Args:
        task: which block, and which averages.
        reader: reads from the opened checkpoints.
        workspace: the memory, and the arithmetic.
        aside: calls what takes much memory, and returns its result.

    Raises:
        CheckpointError: where a checkpoint cannot be read.
    """
    return (_copy if task.is_copied else _average)(task, reader, workspace, aside)


def _copy(task: BlockTask, reader: Reader, workspace: Workspace, aside: Aside) -> Iterator[BlockOutput]:
    """Yield the block as the newest checkpoint of each average stores it."""
    block = task.block
    for base in task.weights.bases:
        dtype = block.dtypes[base]
        data = workspace.stored(dtype.nbytes(block.count), reader.offset(task, base))
        reader.read(task, [base], [data])
        non_finite = None
        if block.averaged and not workspace.is_finite(dtype, data):
            non_finite = aside(partial(workspace.find_non_finite, dtype, data))
        for average, newest in enumerate(task.weights.newest):
            if newest == base:
                yield BlockOutput(average, dtype, data, non_finite)


def _average(task: BlockTask, reader: Reader, workspace: Workspace, aside: Aside) -> Iterator[BlockOutput]:
    """Yield the weighted sums of the block: checkpoints are added from the newest to the oldest, a few at a time."""
    block = task.block
    while True:
        sums = workspace.begin(SumSpec(block.count, block.dtypes, block.target, task.weights))
        with suppress(SumsLost):
            _add_all(task, reader, sums)
            break
    for average in range(len(task.weights.rows)):
        non_finite = None
        if not sums.complete(average):
            non_finite = aside(partial(sums.settle, average, partial(reader.read_again, task)))
        yield BlockOutput(average, block.target, sums.encode(average), non_finite)


def _add_all(task: BlockTask, reader: Reader, sums: BlockSums) -> None:
    for last in range(len(task.block.dtypes) - 1, -1, -task.rows):
        numbers = range(last, max(last - task.rows, -1), -1)
        if not reader.read_and_add(task, numbers, sums):
            reader.read(task, numbers, sums.rows(numbers, [reader.offset(task, number) for number in numbers]))
            sums.add(numbers)


def _read_pieces(tensors: Tensors, pieces: Sequence[Piece], dtype: DType, out: memoryview) -> None:
    """Fill `out` with the pieces' bytes, one after another, in as few reads as their places in the file allow."""
    if len(pieces) == 1:
        tensors.read_into(pieces[0].group.names[0], dtype.nbytes(pieces[0].start), out)
        return
    places = [tensors.locate(piece.group.names[0]) for piece in pieces]
    if None not in places:
        ranges = (
            (place[0], place[1] + dtype.nbytes(piece.start), dtype.nbytes(piece.count))
            for place, piece in zip(places, pieces, strict=True)
            if place is not None
        )
        read_ranges(join_ranges(ranges), out)
        return
    position = 0
    for piece in pieces:
        size = dtype.nbytes(piece.count)
        tensors.read_into(piece.group.names[0], dtype.nbytes(piece.start), out[position : position + size])
        position += size
