"""Put a model together from safetensors files in which each rank saved its pieces, as torch's writer saves them.

The header of each file says where in the whole tensors its pieces begin. No file says how large these are: as large as
the pieces make them. So the pieces of all files must cover each tensor exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path

from ema_cli.checkpoint import MAX_ELEMENTS, MAX_TENSORS, SpecTable, TensorSpec
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.boxes import CoverCheck, Damaged, make_box
from ema_cli.formats.pieces.tensors import PiecedTensors, PieceTable
from ema_cli.formats.safetensors.header import SafetensorsTensors
from ema_cli.formats.safetensors.offsets import saved_offsets
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.trainers.folders import RANK_SHARD

_OTHER_SAVES = "the files of the folder are of different saves, or one is damaged: bring whole copies of all of them"


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a tensor: the number of its file, its first byte there, and its place in the whole tensor."""

    file: int
    start: int
    offsets: tuple[int, ...]
    spec: TensorSpec


@dataclass(slots=True)
class _Joining:
    """Joins the pieces of tensors of one folder."""

    folder: Path
    files: Sequence[SafetensorsTensors]
    table: PieceTable = field(default_factory=PieceTable)
    _specs: SpecTable = field(default_factory=SpecTable)
    _cover: CoverCheck = field(default_factory=CoverCheck)

    def pieces(self) -> dict[str, list[_Piece]]:
        """Return the pieces of each tensor, in the order of the files.

        Raises:
            CheckpointError: for a file that does not say where its pieces begin, and for too many tensors.
        """
        pieces: dict[str, list[_Piece]] = {}
        for number, file in enumerate(self.files):
            offsets = saved_offsets(file)
            for name, spec in file.specs.items():
                at = (0,) * len(spec.shape) if offsets is None else offsets[name]
                piece = _Piece(number, file.offset(name, 0), at, spec)
                pieces.setdefault(name, []).append(piece)
        if len(pieces) > MAX_TENSORS:
            raise CheckpointError(f"holds {len(pieces)} tensors; at most {MAX_TENSORS} are read", subject=self.folder)
        return pieces

    def join(self, name: str, pieces: Sequence[_Piece]) -> tuple[TensorSpec, int]:
        """Return what a tensor is, and its number in the table.

        Raises:
            IncompleteCheckpoint: where pieces are missing.
            CheckpointError: where they do not fit each other.
        """
        first = pieces[0].spec
        for piece in pieces:
            if (piece.spec.dtype, len(piece.spec.shape)) != (first.dtype, len(first.shape)):
                here = self.files[pieces[0].file].file.path.name
                raise CheckpointError(
                    f"its piece of '{name}' is {piece.spec}, and that in {here} is {first}",
                    subject=self.files[piece.file].file.path,
                    hint=_OTHER_SAVES,
                )
        ends = zip(*(map(sum, zip(p.offsets, p.spec.shape, strict=True)) for p in pieces), strict=True)
        shape = tuple(map(max, ends))
        if prod(shape) > MAX_ELEMENTS:
            raise CheckpointError(f"'{name}' has more elements than any file holds", subject=self.folder)
        self._check_complete(name, prod(shape), pieces)
        strides = [prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
        boxes = [(p.file, p.start, make_box(p.offsets, p.spec.shape, strides)) for p in pieces]
        boxes = sorted((placed for placed in boxes if prod(placed[2].shape)), key=lambda placed: placed[2].offsets)
        try:
            self._cover.check(shape, [box for _, _, box in boxes])
        except Damaged as error:
            raise CheckpointError(f"'{name}': {error}", subject=self.folder, hint=_OTHER_SAVES) from None
        spec = self._specs.spec(first.dtype, shape)
        return spec, self.table.add_boxes(spec, boxes)

    def _check_complete(self, name: str, count: int, pieces: Sequence[_Piece]) -> None:
        held = sum(piece.spec.count for piece in pieces)
        if held < count:
            raise IncompleteCheckpoint(
                f"the pieces of '{name}' hold {held} of its {count} elements{self._missing()}",
                subject=self.folder,
                hint="bring the files of all ranks",
            )

    def _missing(self) -> str:
        """Return which ranks before the last one have no file, in words."""
        ranks = sorted({int(match[1]) for file in self.files if (match := RANK_SHARD.search(file.file.path.name))})
        gaps = [*([1] if ranks[0] > 1 else []), *(before + 1 for before, rank in pairwise(ranks) if rank > before + 1)]
        return f"; no file of rank {gaps[0]} is there" if gaps else ""


def join_pieces(folder: Path, files: Sequence[SafetensorsTensors]) -> ShardedTensors:
    """Return the tensors of the files of all ranks as one model.

    Raises:
        IncompleteCheckpoint: where pieces are missing.
        CheckpointError: where they do not fit each other, or a file does not say where its pieces begin.
    """
    joining = _Joining(folder, files)
    specs: dict[str, TensorSpec] = {}
    number_of: dict[str, int] = {}
    held_in: dict[str, list[str]] = {}  # by the file of a model in one piece that would hold the tensors
    for name, pieces in joining.pieces().items():
        specs[name], number_of[name] = joining.join(name, pieces)
        held_in.setdefault(_whole_file(files[pieces[0].file].file.path.name), []).append(name)
    sources = [file.file for file in files]
    parts = [
        PiecedTensors({n: specs[n] for n in names}, {n: number_of[n] for n in names}, joining.table, sources, shard)
        for shard, names in held_in.items()
    ]
    part_of = {name: number for number, names in enumerate(held_in.values()) for name in names}
    return ShardedTensors(specs, part_of, parts)


def _whole_file(name: str) -> str:
    """Return the name of a file without the rank in it."""
    match = RANK_SHARD.search(name)
    return name if match is None else f"{match[2]}-{match[3]}-of-{match[4]}.safetensors"
