"""The work of a fold, cut into blocks: which tensors are folded together, and which bytes lie side by side.

Small tensors of one kind share a block, so that a hundred thousand of them cost no hundred thousand steps. From
specs alone: no tensor is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint, Tensors, TensorSpec
from ema_cli.dtypes import DType
from ema_cli.folding.kernel.numpy_kernel import components, work_dtype

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Group:
    """Tensor names that share their bytes in every checkpoint, to be folded once; `spec` is the newest checkpoint's.

    `count` elements of them are, from the first.
    """

    names: tuple[str, ...]
    spec: TensorSpec
    count: int
    target: DType
    averaged: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` elements of a group of tensors, from element `start`."""

    group: Group
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Block:
    """Pieces of `count` elements in all, folded in one go: of one type in each checkpoint, and of one in the output."""

    pieces: tuple[Piece, ...]
    count: int
    dtypes: tuple[DType, ...]
    target: DType
    averaged: bool

    def find(self, element: int) -> tuple[str, int]:
        """Return the tensor that holds an element of the block, and which of its elements that is."""
        for piece in self.pieces:
            if element < piece.count:
                return piece.group.names[0], piece.start + element
            element -= piece.count
        raise IndexError(element)

    def names_of(self, elements: NDArray[np.intp]) -> set[str]:
        """Return the tensors that hold these elements of the block."""
        ends = np.cumsum([piece.count for piece in self.pieces])
        found = np.unique(np.searchsorted(ends, elements, side="right"))
        return {name for at in found for name in self.pieces[at].group.names}


def make_groups(
    checkpoints: Sequence[Checkpoint],
    targets: Mapping[str, DType],
    copied: frozenset[str],
    most_elements: int | None = None,
) -> Iterator[Group]:
    """Yield the tensors to fold, in the order of `targets`; those that are tied in every checkpoint come together.

    `most_elements`: of each tensor no more than these, the first; a multiple of 8.
    """
    specs = checkpoints[-1].tensors.specs
    tied = _tied_names(checkpoints, targets, copied)
    others = {name for names in tied.values() for name in names[1:]}
    for name, target in targets.items():
        if name not in others:
            spec = specs[name]
            count = spec.count if most_elements is None else min(spec.count, most_elements)
            yield Group(tied.get(name, (name,)), spec, count, target, spec.dtype.averaged and name not in copied)


def _tied_names(
    checkpoints: Sequence[Checkpoint], names: Iterable[str], copied: frozenset[str]
) -> dict[str, tuple[str, ...]]:
    """Return the names that share their bytes in every checkpoint, by the first of them."""
    newest = checkpoints[-1].tensors
    first: dict[object, str] = {}
    candidates: dict[str, list[str]] = {}
    for name in names:
        if name in copied:
            continue  # it need not even be in the others
        leader = first.setdefault(newest.place(name), name)
        if leader is not name and newest.specs[leader] == newest.specs[name]:
            candidates.setdefault(leader, [leader]).append(name)
    tied = {}
    for group in candidates.values():
        parts: dict[object, list[str]] = {}
        for name in group:
            places = tuple(checkpoint.tensors.place(name) for checkpoint in checkpoints)
            parts.setdefault(places, []).append(name)
        tied.update({part[0]: tuple(part) for part in parts.values() if len(part) > 1})
    return tied


def make_blocks(checkpoints: Sequence[Checkpoint], groups: Iterable[Group], nbytes: int) -> Iterator[Block]:
    """Yield the blocks that the groups come to, each of at most `nbytes` in the type that it is accumulated in."""
    pieces: list[Piece] = []
    kind: tuple[tuple[DType, ...], DType, bool] | None = None
    room = 0
    specs = checkpoints[-1].tensors.specs
    alike = all(each.tensors.specs is specs for each in checkpoints)
    for group in groups:
        if group.averaged and not alike:
            dtypes = tuple(each.tensors.specs[group.names[0]].dtype for each in checkpoints)
        else:
            dtypes = (group.spec.dtype,) * len(checkpoints)
        start, count = 0, group.count
        while start < count:
            # Elements that share a byte are not put together with others.
            if kind != (dtypes, group.target, group.averaged) or room == 0 or group.spec.dtype.bits < 8:
                if kind is not None and pieces:
                    yield Block(tuple(pieces), sum(piece.count for piece in pieces), *kind)
                kind, pieces = (dtypes, group.target, group.averaged), []
                room = _capacity(dtypes, group.averaged, nbytes)
            taken = min(room, count - start)
            pieces.append(Piece(group, start, taken))
            start, room = start + taken, room - taken
    if kind is not None and pieces:
        yield Block(tuple(pieces), sum(piece.count for piece in pieces), *kind)


def _capacity(dtypes: Sequence[DType], averaged: bool, nbytes: int) -> int:
    """Return how many elements fit into a block."""
    if averaged:
        return nbytes // (work_dtype(dtypes).itemsize * components(dtypes[-1]))
    count = nbytes * 8 // dtypes[-1].bits
    return count if dtypes[-1].bits >= 8 else count // 8 * 8  # whole bytes


def joined(stretches: Iterable[tuple[Owner, int, int]]) -> Iterator[tuple[Owner, int, int]]:
    """Make one stretch of neighbours: (file, first byte, size) that go on where the one before ends in that file."""
    current: tuple[Owner, int, int] | None = None
    for owner, offset, size in stretches:
        if current is not None and current[0] is owner and current[1] + current[2] == offset:
            current = (owner, current[1], current[2] + size)
            continue
        if current is not None:
            yield current
        current = (owner, offset, size)
    if current is not None:
        yield current


def read_pieces(weights: Tensors, pieces: Sequence[Piece], dtype: DType, out: memoryview) -> None:
    """Fill `out` with the pieces' bytes, one after another, in as few reads as their places in the file allow."""
    if len(pieces) == 1:
        weights.read_into(pieces[0].group.names[0], dtype.nbytes(pieces[0].start), out)
        return
    places = [weights.locate(piece.group.names[0]) for piece in pieces]
    if None not in places:
        stretches = (
            (place[0], place[1] + dtype.nbytes(piece.start), dtype.nbytes(piece.count))
            for place, piece in zip(places, pieces, strict=True)
            if place is not None
        )
        position = 0
        for source, offset, size in joined(stretches):
            source.read_into(offset, out[position : position + size])
            position += size
        return
    position = 0
    for piece in pieces:
        size = dtype.nbytes(piece.count)
        weights.read_into(piece.group.names[0], dtype.nbytes(piece.start), out[position : position + size])
        position += size
