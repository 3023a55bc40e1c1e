"""Cut the work of a fold into blocks: which tensors are folded together, and how much of them at once.

Small tensors of one kind share a block, so that a hundred thousand of them do not take a hundred thousand steps. Specs
are enough for this: no tensor is read here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.folding.kernel import sum_bytes
from ema_cli.folding.sample import Range, Selection
from ema_cli.storage.source import FileRegion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_PIECES = 4096  # in a block: each takes more memory than a small tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share their bytes in every checkpoint (tied weights), to be folded once.

    Attributes:
        names: their names, in the order of the output.
        spec: their spec in the newest checkpoint.
        ranges: the elements that are folded: the first of each stretch, and how many.
        target: the dtype in which they are written.
        averaged: whether they are averaged; else copied from the newest checkpoint.
    """

    names: tuple[str, ...]
    spec: TensorSpec
    ranges: tuple[Range, ...]
    target: DType
    averaged: bool

    @property
    def count(self) -> int:
        """Return how many elements are folded."""
        return sum(count for _, count in self.ranges)


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` elements of a group of tensors, from element `start`."""

    group: Group
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Block:
    """Pieces that are folded in one go: all of one dtype in each checkpoint, and of one in the output.

    Attributes:
        pieces: one after another.
        count: elements in all of them.
        dtypes: the dtype in which each checkpoint stores them, the oldest first.
        target: the dtype in which they are written.
        averaged: whether they are averaged; else copied from the newest checkpoint.
    """

    pieces: tuple[Piece, ...]
    count: int
    dtypes: tuple[DType, ...]
    target: DType
    averaged: bool

    def find(self, element: int) -> tuple[str, int]:
        """Return the tensor that holds an element of the block, and the element's position in it."""
        for piece in self.pieces:
            if element < piece.count:
                return piece.group.names[0], piece.start + element
            element -= piece.count
        raise IndexError(element)

    def names_of(self, elements: NDArray[np.intp]) -> set[str]:
        """Return the tensors that hold these elements of the block."""
        if len(self.pieces) == 1:  # all elements of a large mask, in every thread: not a byte for each
            return set(self.pieces[0].group.names) if len(elements) else set()
        import numpy as np  # which gave the elements, and else is not loaded

        ends = np.cumsum([piece.count for piece in self.pieces])
        positions = np.unique(np.searchsorted(ends, elements, side="right"))
        return {name for position in positions for name in self.pieces[position].group.names}


def make_groups(
    checkpoints: Sequence[Checkpoint],
    targets: Mapping[str, DType],
    copied: frozenset[str],
    sample: Selection | None = None,
) -> Iterator[Group]:
    """Yield the tensors to fold; those that are tied in every checkpoint come together.

    Args:
        checkpoints: the oldest first.
        targets: the output dtype of each tensor, in the order in which the outputs hold them.
        copied: names that are copied from the newest checkpoint, whatever their dtype.
        sample: fold only these elements of each tensor.
    """
    specs = checkpoints[-1].tensors.specs
    tied = _tied_names(checkpoints, targets, copied, sample)
    others = {name for names in tied.values() for name in names[1:]}
    for name, target in targets.items():
        if name not in others:
            spec = specs[name]
            yield Group(
                names=tied.get(name, (name,)),
                spec=spec,
                ranges=((0, spec.count),) if sample is None else sample.ranges(name, spec.count),
                target=target,
                averaged=spec.dtype.averaged and name not in copied,
            )


def _tied_names(
    checkpoints: Sequence[Checkpoint], names: Iterable[str], copied: frozenset[str], sample: Selection | None
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
            parts.setdefault((places, None if sample is None else sample.kind(name)), []).append(name)
        tied.update({part[0]: tuple(part) for part in parts.values() if len(part) > 1})
    return tied


def bytes_to_read(checkpoints: Sequence[Checkpoint], groups: Iterable[Group], newest: Collection[int]) -> int:
    """Return how many bytes a fold reads: averaged tensors from each checkpoint, others from the newest only.

    newest: the numbers of the newest checkpoints of all averages, each once.
    """
    total = 0
    tables = [checkpoint.tensors.specs for checkpoint in checkpoints]
    alike = all(table is tables[-1] for table in tables)
    for group in groups:
        name, count = group.names[0], group.count
        numbers = range(len(checkpoints)) if group.averaged else newest
        if alike:
            total += len(numbers) * group.spec.dtype.nbytes(count)
        else:
            total += sum(tables[number][name].dtype.nbytes(count) for number in numbers)
    return total


def in_file_order(checkpoint: Checkpoint, groups: Iterable[Group], window: int) -> Iterator[Group]:
    """Yield the groups, those that make up `window` bytes in the order in which they lie in the checkpoint's files.

    So what is read one after another lies one after another; and is written not far from its turn.
    """
    near: list[Group] = []
    nbytes = 0
    for group in groups:
        near.append(group)
        nbytes += group.spec.dtype.nbytes(group.count)
        if nbytes >= window:
            yield from _by_place(checkpoint, near)
            near, nbytes = [], 0
    yield from _by_place(checkpoint, near)


def _by_place(checkpoint: Checkpoint, groups: list[Group]) -> list[Group]:
    """Return the groups by their places in files; as they are where one has none."""
    places: list[tuple[str, int]] = []
    for group in groups:
        place = checkpoint.tensors.locate(group.names[0])
        if place is None:
            return groups
        source, offset = place
        while isinstance(source, FileRegion):
            offset, source = source.start + offset, source.file
        places.append((str(source.path), offset))
    return [group for _, group in sorted(zip(places, groups, strict=True), key=lambda each: each[0])]


def make_blocks(
    checkpoints: Sequence[Checkpoint], groups: Iterable[Group], nbytes: int, stored_bytes: int = 0
) -> Iterator[Block]:
    """Yield the blocks of the groups, each of at most `nbytes` in the type in which it is summed up.

    In no checkpoint it has more than `stored_bytes`, unless that is 0.
    """
    pieces: list[Piece] = []
    kind: tuple[tuple[DType, ...], DType, bool] | None = None
    room = 0
    specs = checkpoints[-1].tensors.specs
    alike = all(checkpoint.tensors.specs is specs for checkpoint in checkpoints)
    for group in groups:
        if group.averaged and not alike:
            dtypes = tuple(checkpoint.tensors.specs[group.names[0]].dtype for checkpoint in checkpoints)
        else:
            dtypes = (group.spec.dtype,) * len(checkpoints)
        for start, count in group.ranges:
            end = start + count
            while start < end:
                # Elements that share a byte are not put together with others.
                is_full = room == 0 or len(pieces) == _MOST_PIECES
                if kind != (dtypes, group.target, group.averaged) or is_full or group.spec.dtype.bits < 8:
                    if kind is not None and pieces:
                        yield Block(tuple(pieces), sum(piece.count for piece in pieces), *kind)
                    kind, pieces = (dtypes, group.target, group.averaged), []
                    room = _capacity(dtypes, nbytes, stored_bytes or nbytes, averaged=group.averaged)
                taken = min(room, end - start)
                pieces.append(Piece(group, start, taken))
                start, room = start + taken, room - taken
    if kind is not None and pieces:
        yield Block(tuple(pieces), sum(piece.count for piece in pieces), *kind)


def _capacity(dtypes: Sequence[DType], nbytes: int, stored_bytes: int, *, averaged: bool) -> int:
    """Return how many elements fit into a block."""
    if averaged:
        return min(nbytes // sum_bytes(dtypes), stored_bytes * 8 // max(dtype.bits for dtype in set(dtypes)))
    count = stored_bytes * 8 // dtypes[-1].bits
    return count if dtypes[-1].bits >= 8 else count // 8 * 8  # whole bytes
