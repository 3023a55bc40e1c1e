"""Read tensors of a torch.distributed.checkpoint folder by range, from the pieces that ranks saved."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from operator import itemgetter

from ema_cli.checkpoint import Run, StoredRecord, Tensors, TensorSpec, shared
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError
from ema_cli.formats.boxes import Box, parts_of_box, read_box
from ema_cli.formats.dcp.pieces import Records, StoredTensor, find_clash
from ema_cli.formats.dcp.records import Frame, RecordReader
from ema_cli.formats.torch_save.tensors import IN_ORDER, TorchTensors
from ema_cli.storage.source import ByteSource, FileRegion, InputFile

_MAX_FRAMES, _MAX_OPENED = 1 << 10, 64
_NEIGHBOURS = 16  # records of a file of which the frames are looked for at once


@dataclass(frozen=True, slots=True)
class DcpTables:
    """What `.metadata` says of the tensors of a model, in one piece or in several. Checkpoints mostly share it.

    Attributes:
        specs: dtype and shape of each tensor.
        pieces: the pieces of each tensor.
        first: the number of the record of each tensor's first piece; the records of its other pieces follow.
        records: three numbers for each record: the number of its file, its first byte, its size.
        in_file: the numbers of the records in each file.
        ends: the byte at which the last record of each file ends, by the name of the file.
        clash: a file in which one record lies over another, and words for it; None where there is none.
    """

    specs: Mapping[str, TensorSpec]
    pieces: Mapping[str, tuple[Box, ...]]
    first: Mapping[str, int]
    records: array[int]
    in_file: Sequence[array[int]]
    ends: Mapping[str, int]
    clash: tuple[str, str] | None

    @classmethod
    def of(cls, tensors: Mapping[str, StoredTensor]) -> DcpTables:
        """Return the tensors that are described."""
        first, names, records = dict[str, int](), list[str](), Records()
        for name, tensor in tensors.items():
            first[name] = len(records)
            names += [name] * len(tensor.records)
            records.extend(tensor.records)
        clash = find_clash(records, names.__getitem__)
        ends = dict.fromkeys(records.files, 0)
        numbers = {file: number for number, file in enumerate(ends)}
        for file, start, size in zip(records.files, records.starts, records.sizes, strict=True):
            if start + size > ends[file]:
                ends[file] = start + size
        in_file = [array("I") for _ in ends]
        for record, file in enumerate(records.files):
            in_file[numbers[file]].append(record)
        table = array("q", bytes(8 * 3 * len(records)))
        table[0::3] = array("q", map(numbers.__getitem__, records.files))
        table[1::3], table[2::3] = records.starts, records.sizes
        specs = {name: tensor.spec for name, tensor in tensors.items()}
        pieces = {name: tensor.pieces for name, tensor in tensors.items()}
        return cls(specs, pieces, first, table, in_file, ends, clash)

    def reaching_over(self, file: str, size: int) -> tuple[str, int] | None:
        """Return the first tensor with a record that reaches over the size of its file, and to where; None if none."""
        if self.ends[file] <= size:
            return None
        number = list(self.ends).index(file)
        for name, pieces in self.pieces.items():
            for record in range(self.first[name], self.first[name] + len(pieces)):
                own, start, length = self.records[3 * record : 3 * record + 3]
                if own == number and start + length > size:
                    return name, start + length
        return None


@dataclass(slots=True)
class DcpTensors:
    """The tensors of one model; the attributes are as in `DcpTables`, but for the shards, `files`."""

    specs: Mapping[str, TensorSpec]
    pieces: Mapping[str, tuple[Box, ...]]
    first: Mapping[str, int]
    records: array[int]
    in_file: Sequence[array[int]]
    files: Sequence[InputFile]
    # Records are small archives of their own, recognised or opened when they are read; the last ones stay known.
    _reader: RecordReader = field(default_factory=RecordReader)
    _frames: dict[int, Frame] = field(default_factory=dict)
    _opened: dict[int, TorchTensors] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: DcpTables, files: Mapping[str, InputFile]) -> DcpTensors:
        """Return the tensors; `files` are the shards, by the names that the tables have for them.

        Raises:
            CheckpointError: where one record lies over another.
        """
        if tables.clash is not None:
            raise CheckpointError(f"{tables.clash[1]}", subject=files[tables.clash[0]].path)
        ordered = tuple(files[name] for name in tables.ends)
        return cls(tables.specs, tables.pieces, tables.first, tables.records, tables.in_file, ordered)

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, DcpTensors) and self.pieces == other.pieces and self.first == other.first:
            self.pieces, self.first, self._reader = other.pieces, other.first, other._reader
            self.records = shared(self.records, other.records)
            self.in_file = shared(self.in_file, other.in_file)

    def place(self, name: str) -> str:
        """Return the name: each tensor has records of its own."""
        return name

    def locate(self, name: str) -> None:
        """Return None: the small archive around the bytes must be read first to know where they lie."""

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return where bytes of tensor `name` lie in its records; None where a piece is no run of elements."""
        spec, found = self.specs[name], list[tuple[int, Run]]()
        width = spec.dtype.itemsize
        first, last = start // width, (start + size) // width
        for number, box in enumerate(self.pieces[name], self.first[name]):
            low, high = max(first, box.begin), min(last, box.end)
            if low >= high:
                continue
            if not box.is_run:
                return None
            place = self._locate(name, box, number)
            if place is None:
                return None
            found.append((low, (place[0], place[1] + (low - box.begin) * width, (high - low) * width)))
        return [run for _, run in sorted(found, key=itemgetter(0))]

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies, modulo 64: torch aligns it so in its record."""
        spec = self.specs[name]
        element, rest = divmod(start, spec.dtype.itemsize)
        for number, piece in enumerate(self.pieces[name], self.first[name]):
            for before, _, _ in parts_of_box(spec.shape, piece)(element, element + 1):
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
        for number, box in enumerate(self.pieces[name], self.first[name]):

            def read(at: int, part: memoryview, box: Box = box, number: int = number) -> None:
                place = self._locate(name, box, number)
                if place is None:
                    self._open(name, box, number).read_into(name, at, part)
                else:
                    place[0].read_into(place[1] + at, part)

            read_box(spec, box, read, start, out)

    def stored(self, name: str) -> Iterator[tuple[Box, TorchTensors]]:
        """Yield each piece of tensor `name` with the tensor in its record, which has that name, too."""
        for number, piece in enumerate(self.pieces[name], self.first[name]):
            yield piece, self._open(name, piece, number)

    def _record(self, number: int) -> tuple[InputFile, int, int]:
        file, start, size = self.records[3 * number : 3 * number + 3]
        return self.files[file], start, size

    def _locate(self, name: str, piece: Box, number: int) -> tuple[ByteSource, int] | None:
        """Return where the elements of a piece lie, the file and the first byte; None where they are not in order."""
        frame = self._frame(number)
        if frame is None or frame.view != IN_ORDER or frame.spec != TensorSpec(self.specs[name].dtype, piece.shape):
            return self._open(name, piece, number).locate(name)
        file, start, _ = self._record(number)
        return file, start + frame.begin

    def _frame(self, number: int) -> Frame | None:
        """Return the frame of a record, None where it is not known; those of its neighbours are looked for, too."""
        if number not in self._frames:
            own = self.in_file[self.records[3 * number]]
            begin = bisect_left(own, number) // _NEIGHBOURS * _NEIGHBOURS
            near = [each for each in own[begin : begin + _NEIGHBOURS] if each not in self._frames]
            file, places = self._record(number)[0], [self._record(each)[1:] for each in near]
            frames = zip(near, self._reader.recognise(file, places), strict=True)
            if len(self._frames) >= _MAX_FRAMES:
                self._frames.clear()
            self._frames.update({each: frame for each, frame in frames if frame is not None})
        return self._frames.get(number)

    def _open(self, name: str, piece: Box, number: int) -> TorchTensors:
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
                    hint=OTHER_SAVES,
                )
            if len(self._opened) >= _MAX_OPENED:
                self._opened.clear()
            self._opened[number] = stored
        return stored
