"""Put a model together from safetensors files in which each rank saved its pieces, as torch's writer saves them.

The header of each file says where in the whole tensors its pieces begin. No file says how large these are: as large as
the pieces make them. So the pieces of all files must cover each tensor exactly once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from hashlib import blake2b
from itertools import pairwise
from json import JSONDecoder
from math import prod
from operator import add, itemgetter
from pathlib import Path

from ema_cli.checkpoint import MAX_ELEMENTS, MAX_TENSORS, SpecTable, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.before import Before
from ema_cli.formats.boxes import CoverCheck, Damaged, Shape
from ema_cli.formats.pieces.tensors import PiecedTensors, PieceTable, boxes_in
from ema_cli.formats.safetensors.header import SafetensorsTensors, header_text, read_header
from ema_cli.formats.safetensors.offsets import SHARDING_INFO, saved_offsets
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.trainers.folders import RANK_SHARD
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

_OTHER_SAVES = "the files of the folder are of different saves, or one is damaged: bring whole copies of all of them"
_METADATA = b'{"__metadata__":'  # with which a header begins that has any
_NAME_BYTES = 400  # that the tables of a tensor take, about


@dataclass(slots=True)
class _Pieces:
    """The pieces of a tensor.

    Attributes:
        dtype, dimensions: of the first.
        numbers: for each that of its file, its first byte there, its offsets and its lengths.
    """

    dtype: DType
    dimensions: int
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def columns(self) -> list[array[int]]:
        """Return the numbers of all pieces of each kind: files, first bytes, offsets and lengths by dimension."""
        size = 2 + 2 * self.dimensions
        return [self.numbers[number::size] for number in range(size)]


@dataclass(slots=True)
class _Joining:
    """Joins the pieces of tensors of one folder."""

    folder: Path
    files: Sequence[SafetensorsTensors]
    table: PieceTable = field(default_factory=PieceTable)
    _specs: SpecTable = field(default_factory=SpecTable)
    _cover: CoverCheck = field(default_factory=CoverCheck)

    def _pieces(self) -> dict[str, _Pieces]:
        """Return the pieces of each tensor, in the order of the files.

        Raises:
            CheckpointError: for a file that does not say where its pieces begin or has other types than those before,
                and for too many tensors.
        """
        found: dict[str, _Pieces] = {}
        for number, file in enumerate(self.files):
            offsets = saved_offsets(file)
            for name, spec in file.specs.items():
                pieces = found.get(name)
                if pieces is None:
                    pieces = found[name] = _Pieces(spec.dtype, len(spec.shape))
                elif (pieces.dtype, pieces.dimensions) != (spec.dtype, len(spec.shape)):
                    first = self.files[pieces.numbers[0]]
                    raise CheckpointError(
                        f"its piece of '{name}' is {spec}, and that in {first.file.path.name} is {first.specs[name]}",
                        subject=file.file.path,
                        hint=_OTHER_SAVES,
                    )
                at = (0,) * len(spec.shape) if offsets is None else offsets[name]
                pieces.numbers.extend((number, file.offset(name, 0), *at, *spec.shape))
        if len(found) > MAX_TENSORS:
            raise CheckpointError(f"holds {len(found)} tensors; at most {MAX_TENSORS} are read", subject=self.folder)
        return found

    def tensors(self) -> ShardedTensors:
        """Return the tensors, grouped by the files that would hold them in one piece; raise as `open_pieces`."""
        specs: dict[str, TensorSpec] = {}
        number_of: dict[str, int] = {}
        held_in: dict[str, list[str]] = {}
        for name, pieces in self._pieces().items():
            specs[name], number_of[name] = self._join(name, pieces)
            held_in.setdefault(_whole_file(self.files[pieces.numbers[0]].file.path.name), []).append(name)
        sources = [file.file for file in self.files]
        parts = [
            PiecedTensors({n: specs[n] for n in names}, {n: number_of[n] for n in names}, self.table, sources, shard)
            for shard, names in held_in.items()
        ]
        part_of = {name: number for number, names in enumerate(held_in.values()) for name in names}
        return ShardedTensors(specs, part_of, parts)

    def _join(self, name: str, pieces: _Pieces) -> tuple[TensorSpec, int]:
        """Return what a tensor is, and its number in the table.

        Raises:
            IncompleteCheckpoint: where pieces are missing.
            CheckpointError: where they do not fit each other.
        """
        files, starts, *sides = pieces.columns()
        offsets, lengths = sides[: pieces.dimensions], sides[pieces.dimensions :]
        shape = tuple(max(map(add, at, length)) for at, length in zip(offsets, lengths, strict=True))
        if prod(shape) > MAX_ELEMENTS:
            raise CheckpointError(f"'{name}' has more elements than any file holds", subject=self.folder)
        spec = self._specs.spec(pieces.dtype, shape)
        order = _rows(shape, offsets, lengths)
        if order is not None:  # as mostly
            row = spec.dtype.nbytes(prod(shape[1:]))
            return spec, self.table.add((files[n], starts[n], row * lengths[0][n]) for n in order)
        boxes = [placed for placed in boxes_in(pieces.numbers, shape) if prod(placed[2].shape)]
        boxes.sort(key=lambda placed: placed[2].offsets)
        held = sum(prod(box.shape) for _, _, box in boxes)
        if held < prod(shape):
            raise IncompleteCheckpoint(
                f"the pieces of '{name}' hold {held} of its {prod(shape)} elements{self._missing()}",
                subject=self.folder,
                hint="bring the files of all ranks",
            )
        try:
            self._cover.check(shape, [box for _, _, box in boxes])
        except Damaged as error:
            raise CheckpointError(f"'{name}': {error}", subject=self.folder, hint=_OTHER_SAVES) from None
        return spec, self.table.add_boxes(spec, boxes)

    def _missing(self) -> str:
        """Return which ranks before the last one have no file, in words."""
        ranks = sorted({int(match[1]) for file in self.files if (match := RANK_SHARD.search(file.file.path.name))})
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
    headers = tuple((_digest(header_text(file)), file.size) for file in files)
    known = before.get(RankModel, tuple(names))
    if known is not None and known.headers == headers:
        return known.in_files(files)
    opened = [read_header(file, header_text(file), before) for file in files]
    joining = _Joining(folder, opened)
    tensors = joining.tensors()
    metadata = {key: value for key, value in opened[0].metadata.items() if key != SHARDING_INFO}
    model = RankModel(headers, tensors, metadata, files)
    before.keep(tuple(names), model, 8 * len(joining.table.numbers) + _NAME_BYTES * len(tensors.specs))
    return model


def _digest(text: bytes) -> bytes:
    """Return a digest of a header, which is not changed by the order of its metadata: its writer leaves that to chance.

    What is no such header has its own digest: reading it says what is wrong.
    """
    digest = blake2b(len(text).to_bytes(8))
    rest = text
    if text.startswith(_METADATA):
        try:
            decoded = text.decode()
            metadata, end = JSONDecoder().raw_decode(decoded, len(_METADATA))
        except (ValueError, RecursionError):
            metadata = None
        if isinstance(metadata, dict):
            rest = repr(sorted(metadata.items(), key=itemgetter(0))).encode() + decoded[end:].encode()
    digest.update(rest)
    return digest.digest()


def _rows(shape: Shape, offsets: Sequence[array[int]], lengths: Sequence[array[int]]) -> list[int] | None:
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
