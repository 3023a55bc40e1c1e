"""How ranks share a tensor: which of its indices one rank has, by placements on a mesh of ranks, as DTensor says it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from math import prod

from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Damaged

_MAX_BLOCKS = 1 << 12  # into which a dimension is cut, and of a dimension at one rank: those that are met have a few
_MAX_BOXES = 1 << 16  # of one share

Span = tuple[int, int]
"""The first index, and how many follow from it on."""
Spans = Sequence[Sequence[Span]]
"""For each dimension the indices that a rank has of it, in the order in which it has them."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What one dimension of a mesh does with a tensor.

    Attributes:
        dimension: the dimension of the tensor that it cuts; None where all its ranks have the same.
        blocks: into how many blocks that is cut first, each of which is cut between the ranks.
    """

    dimension: int | None = None
    blocks: int = 1


def spans_of(shape: Sequence[int], cuts: Sequence[tuple[int, int, Placement]]) -> list[list[Span]]:
    """Return the indices that one rank has of a tensor.

    Args:
        shape: of the whole tensor.
        cuts: for each dimension of the mesh, in the order in which they cut: the number of ranks along it, which of
            them it is, and the placement.

    Raises:
        Damaged: where a placement cuts a dimension that is not there, or into too many parts.
    """
    spans: list[list[Span]] = [[(0, length)] if length else [] for length in shape]
    for ranks, number, placement in cuts:
        if placement.dimension is None:
            continue
        if not (0 <= placement.dimension < len(shape) and 0 <= number < ranks and placement.blocks > 0):
            raise Damaged("its placements do not fit its shape or its mesh")
        own = spans[placement.dimension]
        if placement.blocks * len(own) > _MAX_BLOCKS:
            raise Damaged(f"its placements cut a dimension into {placement.blocks} blocks and more")
        blocks = [_chunk(own, placement.blocks, block) for block in range(placement.blocks)]
        spans[placement.dimension] = _joined([span for block in blocks for span in _chunk(block, ranks, number)])
    return spans


def _chunk(spans: Sequence[Span], count: int, number: int) -> list[Span]:
    """Return a chunk of some indices, as torch.chunk cuts: all have the same length, but the last ones."""
    total = sum(length for _, length in spans)
    size = -(-total // count)
    begin, end = min(number * size, total), min((number + 1) * size, total)
    chunk: list[Span] = []
    position = 0
    for first, length in spans:
        low, high = max(begin - position, 0), min(end - position, length)
        if low < high:
            chunk.append((first + low, high - low))
        position += length
    return chunk


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Return the spans, of which those that follow each other are one."""
    joined: list[Span] = []
    for first, length in spans:
        if joined and sum(joined[-1]) == first:
            joined[-1] = joined[-1][0], joined[-1][1] + length
        else:
            joined.append((first, length))
    return joined


def boxes_of(spans: Spans, strides: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Yield the boxes of the whole tensor that a share is made of, each of which lies in order in memory.

    Args:
        spans: the indices that the share has.
        strides: those of the share as it is stored, in elements.

    Yields:
        The element of the stored share with which a box begins, its offsets in the whole tensor, and its lengths.

    Raises:
        Damaged: where there are too many, as the share does not lie in order.
    """
    shape = [sum(length for _, length in own) for own in spans]
    if 0 in shape:
        return
    inner, expected = len(shape), 1
    while inner and (shape[inner - 1] == 1 or strides[inner - 1] == expected):
        inner -= 1
        expected *= shape[inner]
        if len(spans[inner]) > 1:
            break
    if prod(shape[:inner]) * prod(map(len, spans[inner:])) > _MAX_BOXES:
        raise Damaged("a rank has it neither in order nor in lines: save it contiguous")
    sides = [
        [(index, 1) for first, length in own for index in range(first, first + length)] if number < inner else own
        for number, own in enumerate(spans)
    ]
    for box in product(*(zip(_positions(own), own, strict=True) for own in sides)):
        begin = sum(position * stride for (position, _), stride in zip(box, strides, strict=True))
        yield begin, tuple(first for _, (first, _) in box), tuple(length for _, (_, length) in box)


def _positions(spans: Sequence[Span]) -> list[int]:
    """Return where in a share each of its spans begins."""
    return [0, *accumulate(length for _, length in spans)][:-1]
