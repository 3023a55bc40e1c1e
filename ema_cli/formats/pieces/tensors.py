"""Read tensors by range that lie in several pieces, each a run of bytes in a file.

The pieces of a tensor are runs of its elements, the next of which follows the one before; or they are boxes, of which
a run has elements of several: the left and the right half of a matrix.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from math import prod

from ema_cli.checkpoint import Run as FileRun
from ema_cli.checkpoint import StoredRecord, Tensors, TensorSpec, shared
from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Box, make_box, read_box
from ema_cli.formats.torch_save.zip_records import records_at
from ema_cli.storage.source import ByteSource

Run = tuple[int, int, int]
"""A run of elements: the number of a file, the first byte in it, and the number of bytes."""
_NUMBERS = 3  # of a run in `PieceTable.numbers`
_PLACE = 2  # numbers of a box before its offsets and its lengths


@dataclass(slots=True)
class PieceTable:
    """The pieces of all tensors, in few bytes.

    Attributes:
        first: where the numbers of each tensor begin, and where those of the last one end.
        dimensions: of the boxes of each tensor; 0 where its pieces are runs.
        numbers: of each run that of its file, its first byte in it, and its end in the tensor in bytes; of each box
            that of its file, its first byte in it, its offsets and its lengths in elements.
    """

    first: array[int] = field(default_factory=lambda: array("q", [0]))
    dimensions: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def add(self, pieces: Iterable[Run]) -> int:
        """Add a tensor whose pieces are runs, in order, and return its number."""
        end = 0
        for file, start, size in pieces:
            end += size
            self.numbers.extend((file, start, end))
        return self._end(0)

    def add_boxes(self, spec: TensorSpec, boxes: Sequence[tuple[int, int, Box]]) -> int:
        """Add a tensor that boxes cover, each with the number of its file and its first byte there; return its number.

        Boxes without elements are left out.
        """
        filled = [placed for placed in boxes if prod(placed[2].shape)]
        if all(box.is_run for _, _, box in filled):
            filled.sort(key=lambda placed: placed[2].begin)
            return self.add((file, start, spec.dtype.nbytes(prod(box.shape))) for file, start, box in filled)
        for file, start, box in filled:
            self.numbers.extend((file, start, *box.offsets, *box.shape))
        return self._end(len(spec.shape))

    def _end(self, dimensions: int) -> int:
        self.first.append(len(self.numbers))
        self.dimensions.append(dimensions)
        return len(self.dimensions) - 1

    def of(self, tensor: int, start: int, stop: int) -> Iterator[Run]:
        """Yield what the runs of a tensor hold of its bytes from `start` to `stop`."""
        first = self.first[tensor]
        count = (self.first[tensor + 1] - first) // _NUMBERS
        piece = bisect_right(range(count), start, key=lambda number: self.numbers[first + _NUMBERS * number + 2])
        while start < stop:
            at = first + _NUMBERS * piece
            file, begin, end = self.numbers[at : at + _NUMBERS]
            before = self.numbers[at - 1] if piece else 0
            size = min(end, stop) - start
            yield file, begin + start - before, size
            start += size
            piece += 1

    def boxes(self, tensor: int, shape: tuple[int, ...]) -> Iterator[tuple[int, int, Box]]:
        """Yield the boxes of a tensor of this shape, each with the number of its file and its first byte there."""
        return boxes_in(self.numbers, shape, self.first[tensor], self.first[tensor + 1])


def boxes_in(
    numbers: array[int], shape: tuple[int, ...], begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, Box]]:
    """Yield the boxes that numbers describe of a tensor of this shape, each with its file and its first byte there."""
    strides = [prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    size = _PLACE + 2 * len(shape)
    for at in range(begin, len(numbers) if end is None else end, size):
        file, start, *sides = numbers[at : at + size]
        yield file, start, make_box(tuple(sides[: len(shape)]), tuple(sides[len(shape) :]), strides)


@dataclass(slots=True)
class PiecedTensors:
    """The tensors of a model whose files are those of several ranks.

    Attributes:
        specs: dtype and shape of each tensor.
        tensor_of: the number of each tensor in the table; tied ones have the same.
        table: the pieces.
        sources: the files.
        shard_name: the file that names the tensors.
        why_not: why nothing else can be put into their places, in words; empty where it can.
    """

    specs: Mapping[str, TensorSpec]
    tensor_of: Mapping[str, int]
    table: PieceTable
    sources: Sequence[ByteSource]
    shard_name: str
    why_not: str = "is stored in a form that is read only"
    # The boxes of the tensor that was read last: a fold reads it range by range.
    _last: tuple[str, list[tuple[int, int, Box]]] = ("", [])

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, PiecedTensors):
            self.tensor_of = shared(self.tensor_of, other.tensor_of)
            self.table = shared(self.table, other.table)

    def place(self, name: str) -> int:
        """Return the number in the table: tied tensors have it equal."""
        return self.tensor_of[name]

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the file and the byte in it where a tensor of one run begins, None for one of several pieces."""
        pieces = [] if self._is_boxed(name) else list(self._runs(name, 0, self.specs[name].nbytes))
        return (self.sources[pieces[0][0]], pieces[0][1]) if len(pieces) == 1 else None

    def runs(self, name: str, start: int, size: int) -> Sequence[FileRun] | None:
        """Return where bytes of tensor `name` lie; None where its pieces are boxes."""
        if self._is_boxed(name):
            return None
        return [(self.sources[file], begin, length) for file, begin, length in self._runs(name, start, start + size)]

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies; 0 where that takes long to find."""
        runs = () if self._is_boxed(name) else self._runs(name, start, start + 1)
        return next((begin for _, begin, _ in runs), 0)

    def shard(self, name: str) -> str:
        """Return one name for all: the output is not cut as the ranks cut the tensors."""
        return self.shard_name

    def places(self, name: str) -> Iterator[tuple[ByteSource, int, Box]]:
        """Yield the pieces of a tensor: the file, the first byte, and the box; a run is a box of one dimension."""
        spec, position = self.specs[name], 0
        if self._is_boxed(name):
            for file, start, box in self.table.boxes(self.tensor_of[name], spec.shape):
                yield self.sources[file], start, box
            return
        for file, start, size in self._runs(name, 0, spec.nbytes):
            count = size // spec.dtype.itemsize
            yield self.sources[file], start, Box((position,), (count,), position, position + count)
            position += count

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the records of the files in which pieces lie, each once."""
        offsets: dict[int, dict[str, int]] = {}
        for name in self.specs:
            for file, start in self._places(name):
                offsets.setdefault(file, {}).setdefault(name, start)
        for file, starts in offsets.items():
            yield from records_at(self.sources[file], starts)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        if self._is_boxed(name):
            self._read_boxes(name, start, out)
            return
        position = 0
        for file, begin, size in self._runs(name, start, start + len(out)):
            self.sources[file].read_into(begin, out[position : position + size])
            position += size

    def _read_boxes(self, name: str, start: int, out: memoryview) -> None:
        spec = self.specs[name]
        last, boxes = self._last
        if last != name:
            boxes = list(self.table.boxes(self.tensor_of[name], spec.shape))
            self._last = name, boxes
        for file, begin, box in boxes:

            def read(at: int, part: memoryview, source: ByteSource = self.sources[file], begin: int = begin) -> None:
                source.read_into(begin + at, part)

            read_box(spec, box, read, start, out)

    def _is_boxed(self, name: str) -> bool:
        return self.table.dimensions[self.tensor_of[name]] > 0

    def _runs(self, name: str, start: int, stop: int) -> Iterator[Run]:
        return self.table.of(self.tensor_of[name], start, stop)

    def _places(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the file and the first byte in it of each piece of a tensor."""
        if self._is_boxed(name):
            return ((file, start) for file, start, _ in self.table.boxes(self.tensor_of[name], self.specs[name].shape))
        return ((file, start) for file, start, _ in self._runs(name, 0, self.specs[name].nbytes))
