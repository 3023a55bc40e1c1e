"""Read tensors of a torch.distributed.checkpoint folder by range, from the pieces that ranks saved."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from ema_cli.checkpoint import StoredRecord, Tensors, TensorSpec, shared
from ema_cli.errors import CheckpointError
from ema_cli.formats.dcp.pieces import Piece, StoredTensor, find_clash
from ema_cli.formats.dcp.records import RecordReader
from ema_cli.formats.torch_save.tensors import TorchTensors
from ema_cli.storage.source import FileRegion, InputFile

_MAX_OPENED = 64


@dataclass(slots=True)
class DcpTensors:
    """The tensors of one model, in one piece or in several.

    Attributes:
        specs: dtype and shape of each tensor.
        pieces: the pieces of each tensor.
        first: the number of the record of each tensor's first piece; the records of its other pieces follow.
        records: three numbers for each record: the number of its file, its first byte, its size.
        files: the shards.
    """

    specs: Mapping[str, TensorSpec]
    pieces: Mapping[str, tuple[Piece, ...]]
    first: Mapping[str, int]
    records: array[int]
    files: Sequence[InputFile]
    # Records are small archives of their own, opened when they are read; the last few stay open.
    _reader: RecordReader = field(default_factory=RecordReader)
    _opened: dict[int, TorchTensors] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, StoredTensor], files: Mapping[str, InputFile]) -> DcpTensors:
        """Return the tensors that are described, in tables that many checkpoints can share.

        `files` are the shards, by the names that records have for them.

        Raises:
            CheckpointError: where one record lies over another.
        """
        clash = find_clash([(record, name) for name, tensor in tensors.items() for record in tensor.records])
        if clash is not None:
            raise CheckpointError(f"{clash[1]}", subject=files[clash[0]].path)
        number_of = {name: number for number, name in enumerate(files)}
        first, records = {}, array("q")
        for name, tensor in tensors.items():
            first[name] = len(records) // 3
            for record in tensor.records:
                records.extend((number_of[record.file], record.start, record.size))
        specs = {name: tensor.spec for name, tensor in tensors.items()}
        pieces = {name: tensor.pieces for name, tensor in tensors.items()}
        return cls(specs, pieces, first, records, tuple(files.values()))

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, DcpTensors) and self.pieces == other.pieces and self.first == other.first:
            self.pieces, self.first, self._reader = other.pieces, other.first, other._reader

    def place(self, name: str) -> str:
        """Return the name: each tensor has records of its own."""
        return name

    def locate(self, name: str) -> None:
        """Return None: the small archive around the bytes must be read first to know where they lie."""

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies, modulo 64: torch aligns it so in its record."""
        spec = self.specs[name]
        element, rest = divmod(start, spec.dtype.itemsize)
        for number, piece in enumerate(self.pieces[name], self.first[name]):
            if piece.begin <= element < piece.end:
                before = _before(spec.shape, piece, element)
                if _before(spec.shape, piece, element + 1) > before:
                    return self._record(number)[1] + before * spec.dtype.itemsize + rest
        return 0

    def shard(self, name: str) -> str:
        """Return the name of the file that holds the first piece of tensor `name`."""
        return self._record(self.first[name])[0].path.name if self.pieces[name] else ""

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the records of all pieces: each piece is a small archive of its own."""
        for name, pieces in self.pieces.items():
            for number, piece in enumerate(pieces, self.first[name]):
                for record in self._open(name, piece, number).stored_records():
                    yield replace(record, tensor=name)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        spec = self.specs[name]
        size = spec.dtype.itemsize
        first, last = start // size, (start + len(out)) // size
        for number, piece in enumerate(self.pieces[name], self.first[name]):
            if piece.end <= first or piece.begin >= last:
                continue
            if piece.end - piece.begin == prod(piece.shape):  # one run in the whole tensor, as mostly
                low, high = max(first, piece.begin), min(last, piece.end)
                part = out[(low - first) * size : (high - first) * size]
                self._open(name, piece, number).read_into(name, (low - piece.begin) * size, part)
                continue
            low, high = _before(spec.shape, piece, first), _before(spec.shape, piece, last)
            if high > low:
                self._read_piece(name, piece, number, (low, high), first, out)

    def stored(self, name: str) -> Iterator[tuple[Piece, TorchTensors]]:
        """Yield each piece of tensor `name` with the tensor in its record, which has that name, too."""
        for number, piece in enumerate(self.pieces[name], self.first[name]):
            yield piece, self._open(name, piece, number)

    def _read_piece(
        self, name: str, piece: Piece, number: int, span: tuple[int, int], first: int, out: memoryview
    ) -> None:
        """Copy elements of a piece to their places in `out`.

        Args:
            name: the tensor.
            piece: the piece, which is not one run of elements in the whole tensor.
            number: the number of its record.
            span: the elements to copy: the first and the one after the last, counted in the piece's own C order.
            first: the element of the whole tensor with which `out` begins.
            out: takes the bytes.
        """
        spec = self.specs[name]
        size = spec.dtype.itemsize
        low, high = span
        stored = self._open(name, piece, number)
        run, outer = _runs(spec.shape, piece)
        if high - low <= run - low % run:
            begin = (_run_start(piece, outer, low // run) + low % run - first) * size
            stored.read_into(name, low * size, out[begin : begin + (high - low) * size])
            return
        data = memoryview(bytearray((high - low) * size))
        stored.read_into(name, low * size, data)
        position = low
        while position < high:
            count = min(run - position % run, high - position)
            begin = (_run_start(piece, outer, position // run) + position % run - first) * size
            at = (position - low) * size
            out[begin : begin + count * size] = data[at : at + count * size]
            position += count

    def _record(self, number: int) -> tuple[InputFile, int, int]:
        file, start, size = self.records[3 * number : 3 * number + 3]
        return self.files[file], start, size

    def _open(self, name: str, piece: Piece, number: int) -> TorchTensors:
        """Return the tensor in the record of a piece."""
        stored = self._opened.get(number)
        if stored is None:
            spec = self.specs[name]
            file, start, size = self._record(number)
            stored = self._reader.open(name, FileRegion(file, start, size))
            if stored is None or stored.specs[name] != TensorSpec(spec.dtype, piece.shape):
                raise CheckpointError(
                    f"'{name}' is stored as something else than its folder's .metadata says",
                    subject=file.path,
                    hint="the files of the folder are of different saves",
                )
            if len(self._opened) >= _MAX_OPENED:
                self._opened.clear()
            self._opened[number] = stored
        return stored


def parts_of_piece(shape: tuple[int, ...], piece: Piece) -> Callable[[int, int], Iterator[tuple[int, int, int]]]:
    """Return what finds the elements of a piece in a range of the whole tensor, first and last: runs of them.

    Each run is: the first in the piece, the first in the whole tensor, and how many.
    """
    if piece.end - piece.begin == prod(piece.shape):  # one run, as mostly

        def whole(first: int, last: int) -> Iterator[tuple[int, int, int]]:
            low, high = max(first, piece.begin), min(last, piece.end)
            if low < high:
                yield low - piece.begin, low, high - low

        return whole
    run, outer = _runs(shape, piece)

    def runs(first: int, last: int) -> Iterator[tuple[int, int, int]]:
        position, high = _before(shape, piece, first), _before(shape, piece, last)
        while position < high:
            count = min(run - position % run, high - position)
            yield position, _run_start(piece, outer, position // run) + position % run, count
            position += count

    return runs


def _before(shape: tuple[int, ...], piece: Piece, element: int) -> int:
    """Return how many elements of the piece come before `element` of the whole tensor, in C order."""
    if element >= prod(shape):
        return prod(piece.shape)
    before, block, rest = 0, prod(piece.shape), prod(shape)
    for whole, at, length in zip(shape, piece.offsets, piece.shape, strict=True):
        rest //= whole
        block //= length
        index, element = divmod(element, rest)
        if index < at:
            return before
        if index >= at + length:
            return before + length * block
        before += (index - at) * block
    return before


def _runs(shape: tuple[int, ...], piece: Piece) -> tuple[int, list[tuple[int, int]]]:
    """Return how many elements of the piece lie in one run in the whole tensor, and the dimensions outside a run.

    The dimensions come from the outermost, as pairs: length in the piece, stride in the whole tensor. A piece of shape
    [2, 3] at the left of a tensor [4, 5] has runs of 3 elements, and outside of them [(2, 5)].
    """
    inner = len(shape)
    while inner > 0 and piece.shape[inner - 1] == shape[inner - 1]:
        inner -= 1
    inner = max(inner - 1, 0)  # the innermost dimension that is cut is still one run
    outer = [(piece.shape[dimension], prod(shape[dimension + 1 :])) for dimension in range(inner)]
    return prod(piece.shape[inner:]), outer


def _run_start(piece: Piece, outer: list[tuple[int, int]], number: int) -> int:
    """Return the element of the whole tensor at which run `number` of a piece begins."""
    begin = piece.begin
    for length, stride in reversed(outer):
        number, index = divmod(number, length)
        begin += index * stride
    return begin
