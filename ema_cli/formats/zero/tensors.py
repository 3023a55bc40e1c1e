"""Read tensors by range that lie in several pieces, each a run of bytes in a file: the next follows the one before."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ema_cli.checkpoint import StoredRecord, Tensors, TensorSpec, shared
from ema_cli.formats.torch_save.zip_records import records_at
from ema_cli.storage.source import ByteSource

Piece = tuple[int, int, int]
"""The number of a file, the first byte in it, and the number of bytes."""
_NUMBERS = 3  # of a piece in `PieceTable.numbers`


@dataclass(slots=True)
class PieceTable:
    """The pieces of all tensors, in few bytes.

    Attributes:
        first: the number of the first piece of each tensor, and that after the last of all.
        numbers: three numbers for each piece: that of its file, its first byte in it, and its end in the tensor.
    """

    first: array[int] = field(default_factory=lambda: array("q", [0]))
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def add(self, pieces: Iterable[Piece]) -> int:
        """Add a tensor, and return its number."""
        end = 0
        for file, start, size in pieces:
            end += size
            self.numbers.extend((file, start, end))
        self.first.append(len(self.numbers) // _NUMBERS)
        return len(self.first) - 2

    def of(self, tensor: int, start: int, stop: int) -> Iterator[Piece]:
        """Yield what the pieces of a tensor hold of its bytes from `start` to `stop`."""
        first, last = self.first[tensor], self.first[tensor + 1]
        piece = bisect_right(range(first, last), start, key=lambda number: self.numbers[_NUMBERS * number + 2]) + first
        while start < stop:
            file, begin, end = self.numbers[_NUMBERS * piece : _NUMBERS * piece + _NUMBERS]
            before = self.numbers[_NUMBERS * piece - 1] if piece > first else 0
            size = min(end, stop) - start
            yield file, begin + start - before, size
            start += size
            piece += 1


@dataclass(slots=True)
class PiecedTensors:
    """The tensors of a model whose files are those of several ranks.

    Attributes:
        specs: dtype and shape of each tensor.
        tensor_of: the number of each tensor in the table; tied ones have the same.
        table: the pieces.
        sources: the files.
        shard_name: the file that names the tensors.
    """

    specs: Mapping[str, TensorSpec]
    tensor_of: Mapping[str, int]
    table: PieceTable
    sources: Sequence[ByteSource]
    shard_name: str

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
        """Return the file and the byte in it where a tensor of one piece begins, None for one of several."""
        pieces = list(self.table.of(self.tensor_of[name], 0, self.specs[name].nbytes))
        return (self.sources[pieces[0][0]], pieces[0][1]) if len(pieces) == 1 else None

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies."""
        return next((begin for _, begin, _ in self.table.of(self.tensor_of[name], start, start + 1)), 0)

    def shard(self, name: str) -> str:
        """Return one name for all: the output is not cut as the ranks cut the tensors."""
        return self.shard_name

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the records of the files in which pieces lie, each once."""
        offsets: dict[int, dict[str, int]] = {}
        for name, spec in self.specs.items():
            for file, start, _ in self.table.of(self.tensor_of[name], 0, spec.nbytes):
                offsets.setdefault(file, {}).setdefault(name, start)
        for file, starts in offsets.items():
            yield from records_at(self.sources[file], starts)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        position = 0
        for file, begin, size in self.table.of(self.tensor_of[name], start, start + len(out)):
            self.sources[file].read_into(begin, out[position : position + size])
            position += size
