"""Put a model together from safetensors files in which each rank saved its pieces, as torch's writer saves them.

The header of each file says where in the whole tensors its pieces begin. No file says how large these are: as large as
the pieces make them. So the pieces of all files must cover each tensor exactly once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from itertools import pairwise
from math import prod
from operator import add
from pathlib import Path

from ema_cli.checkpoint import MAX_ELEMENTS, MAX_TENSORS, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError, IncompleteCheckpoint
from ema_cli.formats.before import Before
from ema_cli.formats.boxes import Box, CoverCheck, Damaged, Shape, make_box
from ema_cli.formats.pieces.tensors import PiecedTensors, PieceTable
from ema_cli.formats.safetensors.header import header_digest, header_text, read_header
from ema_cli.formats.safetensors.offsets import SHARDING_INFO, OffsetReader
from ema_cli.formats.safetensors.tensors import SafetensorsTensors
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.spec_table import SpecTable
from ema_cli.formats.trainers.folders import RANK_SHARD
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

_NAME_BYTES = 400  # that the tables of a tensor take, about


@dataclass(frozen=True, slots=True)
class _Alike:
    """Files with the same tensors, as far as their own headers tell: those of most ranks.

    Attributes:
        specs: the pieces.
        begins: where the bytes of each begin behind the header.
        files: the numbers of the files.
        headers: the size of the header of each file.
        offsets: of each file where its pieces begin in whole tensors, one after the other.
    """

    specs: Mapping[str, TensorSpec]
    begins: Mapping[str, int]
    files: list[int] = field(default_factory=list)
    headers: list[int] = field(default_factory=list)
    offsets: list[array[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Held:
    """The pieces of a tensor in files that are alike, and the number of its first offset in these."""

    files: _Alike
    spec: TensorSpec
    first: int


class _Columns:
    """The numbers of all pieces of a tensor: its files, first bytes there, and by dimension offsets and lengths."""

    def __init__(self, name: str, held: Sequence[_Held]) -> None:
        dimensions = range(len(held[0].spec.shape))
        self.files = [file for each in held for file in each.files.files]
        self.starts = [size + each.files.begins[name] for each in held for size in each.files.headers]
        self.offsets = [
            [offsets[each.first + dimension] for each in held for offsets in each.files.offsets]
            for dimension in dimensions
        ]
        self.lengths = [
            [each.spec.shape[dimension] for each in held for _ in each.files.files] for dimension in dimensions
        ]

    def boxes(self, shape: Shape) -> list[tuple[int, int, Box]]:
        """Return the pieces of a tensor of this shape that have elements, in order."""
        strides = [prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
        offsets, lengths = (
            [*zip(*sides, strict=True)] or [()] * len(self.files) for sides in (self.offsets, self.lengths)
        )
        placed = zip(self.files, self.starts, offsets, lengths, strict=True)
        boxes = [(file, start, make_box(at, length, strides)) for file, start, at, length in placed if prod(length)]
        return sorted(boxes, key=lambda placed: placed[2].offsets)


@dataclass(slots=True)
class _Joining:
    """Joins the pieces of tensors of one folder.

    Attributes:
        folder: the folder.
        files: its files, by the numbers that pieces have for them.
        table: the pieces.
    """

    folder: Path
    files: Sequence[InputFile]
    table: PieceTable = field(default_factory=PieceTable)
    _alike: dict[tuple[int, int], _Alike] = field(default_factory=dict)
    _held: dict[str, list[_Held]] = field(default_factory=dict)
    _reader: OffsetReader = field(default_factory=OffsetReader)
    _specs: SpecTable = field(default_factory=SpecTable)
    _cover: CoverCheck = field(default_factory=CoverCheck)

    def add(self, number: int, file: SafetensorsTensors) -> None:
        """Add the pieces in a file, whose number is the next.

        Raises:
            CheckpointError: for a file that does not say where its pieces begin or has other types than those before,
                and for too many tensors.
        """
        offsets = self._reader.read(file)
        key = id(file.specs), id(file.offsets)  # one object where all is equal
        alike = self._alike.get(key)
        if alike is None:
            alike = self._alike[key] = _Alike(file.specs, file.offsets)
            self._hold(file, alike)
        alike.files.append(number)
        alike.headers.append(file.data_start)
        alike.offsets.append(offsets)

    def _hold(self, file: SafetensorsTensors, alike: _Alike) -> None:
        first = 0
        for name, spec in alike.specs.items():
            held = self._held.setdefault(name, [])
            if held and (held[0].spec.dtype, len(held[0].spec.shape)) != (spec.dtype, len(spec.shape)):
                other = self.files[held[0].files.files[0]].path.name
                raise CheckpointError(
                    f"its piece of '{name}' is {spec}, and that in {other} is {held[0].spec}",
                    subject=file.file.path,
                    hint=OTHER_SAVES,
                )
            held.append(_Held(alike, spec, first))
            first += len(spec.shape)
        if len(self._held) > MAX_TENSORS:
            raise CheckpointError(
                f"holds {len(self._held)} tensors; at most {MAX_TENSORS} are read", subject=self.folder
            )

    def tensors(self) -> ShardedTensors:
        """Return the tensors, grouped by the files that would hold them in one piece; raise as `open_pieces`."""
        specs: dict[str, TensorSpec] = {}
        number_of: dict[str, int] = {}
        held_in: dict[str, list[str]] = {}
        whole = [_whole_file(file.path.name) for file in self.files]
        for name, held in self._held.items():
            specs[name], number_of[name] = self._join(name, held)
            held_in.setdefault(whole[held[0].files.files[0]], []).append(name)
        parts = [
            PiecedTensors({n: specs[n] for n in names}, {n: number_of[n] for n in names}, self.table, self.files, shard)
            for shard, names in held_in.items()
        ]
        part_of = {name: number for number, names in enumerate(held_in.values()) for name in names}
        return ShardedTensors(specs, part_of, parts)

    def _join(self, name: str, held: Sequence[_Held]) -> tuple[TensorSpec, int]:
        """Return what a tensor is, and its number in the table.

        Raises:
            IncompleteCheckpoint: where pieces are missing.
            CheckpointError: where they do not fit each other.
        """
        columns = _Columns(name, held)
        offsets, lengths = columns.offsets, columns.lengths
        shape = tuple(max(map(add, at, length)) for at, length in zip(offsets, lengths, strict=True))
        if prod(shape) > MAX_ELEMENTS:
            raise CheckpointError(f"'{name}' has more elements than any file holds", subject=self.folder)
        spec = self._specs.spec(held[0].spec.dtype, shape)
        order = _rows(shape, offsets, lengths)
        if order is not None:  # as mostly
            row = spec.dtype.nbytes(prod(shape[1:]))
            return spec, self.table.add((columns.files[n], columns.starts[n], row * lengths[0][n]) for n in order)
        boxes = columns.boxes(shape)
        held_count = sum(prod(box.shape) for _, _, box in boxes)
        if held_count < prod(shape):
            raise IncompleteCheckpoint(
                f"the pieces of '{name}' hold {held_count} of its {prod(shape)} elements{self._missing()}",
                subject=self.folder,
                hint="bring the files of all ranks",
            )
        try:
            self._cover.check(shape, [box for _, _, box in boxes])
        except Damaged as error:
            raise CheckpointError(f"'{name}': {error}", subject=self.folder, hint=OTHER_SAVES) from None
        return spec, self.table.add_boxes(spec, boxes)

    def _missing(self) -> str:
        """Return which ranks before the last one have no file, in words."""
        ranks = sorted({int(match[1]) for file in self.files if (match := RANK_SHARD.search(file.path.name))})
        gaps = [*([1] if ranks[0] > 1 else []), *(before + 1 for before, rank in pairwise(ranks) if rank > before + 1)]
        return f"; no file of rank {gaps[0]} is there" if gaps else ""


@dataclass(frozen=True, slots=True)
class RankModel:
    """A model from the files of all ranks.

    Attributes:
        headers: a digest and the size of each file: those of files with equal ones lie at the same places.
        tensors: its tensors.
        metadata: what the header of the first file says, besides where pieces begin.
        files: the files.
    """

    headers: tuple[tuple[bytes, int], ...]
    tensors: ShardedTensors
    metadata: Mapping[str, str]
    files: tuple[InputFile, ...]

    def in_files(self, files: tuple[InputFile, ...]) -> RankModel:
        """Return the model that lies in other files at the same places."""
        parts = [replace(part, sources=files) for part in self.tensors.parts if isinstance(part, PiecedTensors)]
        return replace(self, tensors=replace(self.tensors, parts=parts), files=files)


def open_pieces(folder: Path, names: Sequence[str], before: Before) -> RankModel:
    """Open the files of all ranks as one model.

    Args:
        folder: where they lie.
        names: their names.
        before: what the files of the run were that were read before.

    Raises:
        IncompleteCheckpoint: where pieces are missing.
        CheckpointError: where they do not fit each other, or a file does not say where its pieces begin.
    """
    files = tuple(location(folder / name).open() for name in names)
    headers = tuple((header_digest(header_text(file)), file.size) for file in files)
    known = before.get(RankModel, tuple(names))
    if known is not None and known.headers == headers:
        return known.in_files(files)
    joining, metadata = _Joining(folder, files), dict[str, str]()
    for number, file in enumerate(files):  # one at a time: of each only what says where its pieces lie is kept
        opened = read_header(file, header_text(file), before)
        joining.add(number, opened)
        if number == 0:
            metadata = {key: value for key, value in opened.metadata.items() if key != SHARDING_INFO}
    tensors = joining.tensors()
    model = RankModel(headers, tensors, metadata, files)
    before.keep(tuple(names), model, 8 * len(joining.table.numbers) + _NAME_BYTES * len(tensors.specs))
    return model


def _rows(shape: Shape, offsets: Sequence[list[int]], lengths: Sequence[list[int]]) -> list[int] | None:
    """Return the order of pieces that cut the first dimension alone, and cover it; None where they do not."""
    if not shape or any(min(length) < whole for length, whole in zip(lengths[1:], shape[1:], strict=True)):
        return None
    at, length = offsets[0], lengths[0]
    order = sorted(range(len(at)), key=at.__getitem__)
    position = 0
    for number in order:
        if at[number] != position or not length[number]:
            return None
        position += length[number]
    return order


def _whole_file(name: str) -> str:
    """Return the name of a file without the rank in it."""
    match = RANK_SHARD.search(name)
    return name if match is None else f"{match[2]}-{match[3]}-of-{match[4]}.safetensors"
