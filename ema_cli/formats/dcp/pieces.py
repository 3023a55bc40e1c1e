"""Pieces of a tensor, and the records that hold them: whether they cover the tensor, and lie apart in their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import prod

from ema_cli.checkpoint import TensorSpec

_MAX_COMPARED = 4_000_000  # pairs of pieces, in all tensors whose pieces form no grid

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Where one item lies: `size` bytes from byte `start` of a file in the folder."""

    file: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor that one rank saved: a box of `shape` at `offsets`, in elements.

    In C order of the whole tensor, `begin` is its first element and `end` the one after its last. Elements of other
    pieces may lie between: the left half of a matrix has elements in all rows.
    """

    offsets: Shape
    shape: Shape
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, whole: its spec, the pieces that cover it exactly once, and the record of each piece."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]
    records: tuple[Record, ...]


class Damaged(Exception):
    """What is wrong with one entry, in words."""


@dataclass(slots=True)
class CoverCheck:
    """Checks the pieces of tensors, with a bound on the work for all tensors of a folder together."""

    _compared: int = 0

    def check(self, shape: Shape, pieces: list[Piece]) -> None:
        """Check that the pieces lie in a tensor of this shape, do not overlap, and leave nothing out.

        Raises:
            Damaged: where they do not, or where that would take too many comparisons.
        """
        for piece in pieces:
            if any(at + length > whole for at, length, whole in zip(piece.offsets, piece.shape, shape, strict=True)):
                raise Damaged(f"its piece at {list(piece.offsets)} reaches out of it")
        if sum(prod(piece.shape) for piece in pieces) != prod(shape):
            raise Damaged("its pieces do not cover it exactly once")
        if _is_grid(shape, pieces):
            return
        self._compared += len(pieces) * (len(pieces) - 1) // 2
        if self._compared > _MAX_COMPARED:
            raise Damaged(f"it is cut into {len(pieces)} pieces that form no grid")
        for number, one in enumerate(pieces):
            for other in pieces[:number]:
                sides = zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
                if all(a < c + d and c < a + b for a, b, c, d in sides):
                    raise Damaged(f"its pieces at {list(one.offsets)} and at {list(other.offsets)} overlap")


def make_piece(offsets: Shape, shape: Shape, strides: Sequence[int]) -> Piece:
    """Return the piece with these offsets and shape in a tensor of these strides, all in elements.

    Raises:
        Damaged: where the numbers of dimensions differ.
    """
    if not len(offsets) == len(shape) == len(strides):
        raise Damaged("one of its pieces has another number of dimensions")
    begin = sum(at * stride for at, stride in zip(offsets, strides, strict=True))
    reach = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    return Piece(offsets, shape, begin, begin + reach + 1)


def find_clash(records: list[tuple[Record, str]]) -> tuple[str, str] | None:
    """Return the file in which one of the records overlaps another, and words for it; None where none does.

    Otherwise a few bytes could stand for any number of large records.
    """
    records.sort(key=lambda named: (named[0].file, named[0].start, named[0].size))
    for (before, name), (after, other) in pairwise(records):
        if before.file == after.file and before.start + before.size > after.start:
            return after.file, f"{shown(other)} lies over {shown(name)} at byte {after.start}"
    return None


def _is_grid(shape: Shape, pieces: list[Piece]) -> bool:
    """Return whether the pieces are a grid: all boxes that cuts through each dimension make, and none twice."""
    boxes = 1
    for dimension, whole in enumerate(shape):
        # Sorted, not in a set: numbers can be chosen so that all their hashes are equal.
        sides = [
            side for side, _ in groupby(sorted((piece.offsets[dimension], piece.shape[dimension]) for piece in pieces))
        ]
        ends = [0, *(at + length for at, length in sides)]
        if [at for at, _ in sides] != ends[:-1] or ends[-1] != whole:
            return False
        boxes *= len(sides)
    return boxes == len(pieces) and all(one.offsets != other.offsets for one, other in pairwise(pieces))


def shown(value: object) -> str:
    """Return a text for a message, quoted and cut; of anything else only its type."""
    # Only text is shown: anything else may be endless, or a number of more digits than Python prints.
    return repr(value[:200]) if isinstance(value, str) else f"an object of type {type(value).__name__}"
