"""Where the bytes of a tensor lie in the files of a checkpoint, so that others can take their place.

A format that is missing in `stored_pieces` is read, but not written over again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from ema_cli.checkpoint import Tensors, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.formats.boxes import parts_of_box
from ema_cli.formats.cut import CutTensors
from ema_cli.formats.dcp.tensors import DcpTensors
from ema_cli.formats.pieces.tensors import PiecedTensors
from ema_cli.formats.safetensors.tensors import SafetensorsTensors
from ema_cli.formats.shards import PlacedTensors, ShardedTensors
from ema_cli.formats.torch_save.tensors import TorchTensors
from ema_cli.formats.trainers.prefixes import Renamed
from ema_cli.storage.source import ByteSource, FileRegion

Part = tuple[int, int, int]
"""A run of elements: the first in a piece, the first in the whole tensor, and how many."""


class NotWrittenBack(Exception):
    """A tensor into whose place no other bytes can be put, and why."""


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A tensor, or a part of one, as it lies in a file.

    Attributes:
        file: the file.
        base: the byte of the file at which the first element lies.
        spec: dtype and shape of the piece.
        parts: returns the runs of elements that the piece and a range of the whole tensor, first and last, share.
        strides: in elements; None in C order.
        conjugate, negative: torch's lazy bits.
        archive: the archive of torch's within the file that holds it, None where the file is one.
        copy_of: the dtype of the tensor of which this is a copy in a narrower one, None where it is the tensor itself.
    """

    file: ByteSource
    base: int
    spec: TensorSpec
    parts: Callable[[int, int], Iterator[Part]]
    strides: tuple[int, ...] | None = None
    conjugate: bool = False
    negative: bool = False
    archive: FileRegion | None = None
    copy_of: DType | None = None

    @property
    def dtype(self) -> DType:
        """Return the dtype of the averages that are put here, rounded where the piece has another."""
        return self.copy_of or self.spec.dtype

    @property
    def place(self) -> tuple[object, ...]:
        """Return what is equal for pieces of the same bytes."""
        return self.file.path, self.base, self.spec, self.strides

    @property
    def in_order(self) -> bool:
        """Return whether the bytes of the average in C order are those in the file."""
        return self.strides is None and not (self.conjugate or self.negative) and self.dtype == self.spec.dtype

    def spans(self) -> list[tuple[int, int]]:
        """Return the ranges of the file that hold its elements and nothing else: first byte, and the one behind.

        Raises:
            NotWrittenBack: where several elements share their bytes.
        """
        if self.strides is None:
            return [(self.base, self.base + self.spec.nbytes)] if self.spec.count else []
        from ema_cli.formats.copies.apart import Overlapping, runs_of  # which loads numpy, and few tensors need

        try:
            return runs_of(self.base, self.spec, self.strides)
        except Overlapping as error:
            raise NotWrittenBack(str(error)) from None

    def write(self, write: Callable[[int, memoryview], None], first: int, data: memoryview) -> None:
        """Write elements of the average, from number `first` of the piece on in C order, at their bytes in the file."""
        dtype = self.spec.dtype
        if self.dtype != dtype:
            from ema_cli.formats.copies.apart import rounded

            data = rounded(self.dtype, dtype, data)
        if self.conjugate or self.negative:
            data = memoryview(bytearray(data))
            from ema_cli.formats.torch_save.strided import apply_lazy_bits

            apply_lazy_bits(dtype, data, conjugate=self.conjugate, negative=self.negative)
        if self.strides is None:
            write(self.base + dtype.nbytes(first), data)
        else:
            from ema_cli.formats.torch_save.strided import scatter

            scatter(write, self.base, self.spec, self.strides, dtype.nbytes(first), data)


def stored_pieces(tensors: Tensors | CutTensors, name: str) -> Iterator[StoredPiece]:
    """Yield the pieces in which tensor `name` is stored.

    Raises:
        NotWrittenBack: for a format that is read only.
    """
    match tensors:
        case SafetensorsTensors():
            yield _whole(*tensors.locate(name), tensors.specs[name])
        case TorchTensors():
            offset, view = tensors.offsets[tensors.numbers[name]], tensors.views.get(name)
            piece = _whole(tensors.source, offset, tensors.specs[name])
            if view is not None:
                piece = replace(piece, strides=view.strides, conjugate=view.conjugate, negative=view.negative)
            yield piece
        case Renamed():
            yield from stored_pieces(tensors.tensors, tensors.stored[name])
        case ShardedTensors():
            yield from stored_pieces(tensors.parts[tensors.part_of[name]], name)
            yield from _copied(tensors, name)
        case PiecedTensors() if not tensors.why_not:
            spec = tensors.specs[name]
            for source, start, part in tensors.places(name):
                piece = _whole(source, start, replace(spec, shape=part.shape))
                yield replace(piece, parts=parts_of_box(spec.shape, part))
        case PlacedTensors():
            yield from stored_pieces(tensors.tensors, name.removeprefix(f"{tensors.folder}/"))
        case CutTensors():
            yield from _parts(tensors, name)
        case DcpTensors():
            for box, stored in tensors.stored(name):
                shape = tensors.specs[name].shape
                for piece in stored_pieces(stored, name):
                    yield replace(piece, parts=parts_of_box(shape, box))
        case _:
            raise NotWrittenBack(getattr(tensors, "why_not", "is stored in a form that is read only"))


def copied_pieces(tensors: Tensors, name: str) -> Iterator[StoredPiece]:
    """Yield the pieces of copies of tensor `name`, which are not read; raise as `stored_pieces`."""
    if isinstance(tensors, Renamed):
        yield from copied_pieces(tensors.tensors, tensors.stored[name])
    if isinstance(tensors, ShardedTensors):
        yield from copied_pieces(tensors.parts[tensors.part_of[name]], name)
        yield from _copied(tensors, name)


def _copied(tensors: ShardedTensors, name: str) -> Iterator[StoredPiece]:
    for copy in (copy for copy in tensors.copies if name in copy.specs):
        yield from (replace(piece, copy_of=tensors.specs[name].dtype) for piece in stored_pieces(copy, name))


def _parts(tensors: CutTensors, name: str) -> Iterator[StoredPiece]:
    """Yield what each rank has of a tensor."""
    shape = tensors.specs[name].shape
    for part in tensors.parts[name]:
        (own,) = stored_pieces(tensors.ranks[part.rank], name)
        if own.strides is not None:
            raise NotWrittenBack(f"rank {part.rank} has '{name}' in an order of its own")
        spec = replace(own.spec, shape=part.box.shape)
        base = own.base + spec.dtype.nbytes(part.start)
        yield replace(own, base=base, spec=spec, parts=parts_of_box(shape, part.box))


def _whole(source: ByteSource, offset: int, spec: TensorSpec) -> StoredPiece:
    file, base = source, offset
    archive = source if isinstance(source, FileRegion) else None
    if archive is not None:
        file, base = archive.file, base + archive.start
    return StoredPiece(file, base, spec, _all_parts, archive=archive)


def _all_parts(first: int, last: int) -> Iterator[Part]:
    yield first, first, last - first


def check_apart(spans: list[tuple[int, int, str]]) -> None:
    """Check that no bytes of a file are those of two tensors; `spans`: the first, the one behind, and the tensor.

    Raises:
        NotWrittenBack: naming two.
    """
    spans.sort()
    for (_, end, before), (begin, _, after) in pairwise(spans):
        if begin < end and before != after:
            raise NotWrittenBack(f"'{before}' and '{after}' share bytes in it, and their averages may differ")
