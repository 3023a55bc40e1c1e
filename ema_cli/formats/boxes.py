"""Boxes: parts of a tensor as ranks save them. Whether they cover it, and where their elements lie in the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from math import prod

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass

_MAX_COMPARED = 4_000_000  # pairs of boxes, in all tensors whose boxes form no grid

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor that one rank saved: a box of `shape` at `offsets`, in elements.

    In C order of the whole tensor, `begin` is its first element and `end` the one after its last. Elements of other
    pieces may lie between: the left half of a matrix has elements in all rows.
    """

    offsets: Shape
    shape: Shape
    begin: int
    end: int

    @property
    def is_run(self) -> bool:
        """Return whether no elements of others lie between its own."""
        return self.end - self.begin == prod(self.shape)


class Damaged(Exception):
    """What is wrong with one entry, in words."""


@dataclass(slots=True)
class CoverCheck:
    """Checks the pieces of tensors, with a bound on the work for all tensors of a folder together."""

    _compared: int = 0

    def check(self, shape: Shape, pieces: list[Box]) -> None:
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


def make_box(offsets: Shape, shape: Shape, strides: Sequence[int]) -> Box:
    """Return the piece with these offsets and shape in a tensor of these strides, all in elements.

    Raises:
        Damaged: where the numbers of dimensions differ.
    """
    if not len(offsets) == len(shape) == len(strides):
        raise Damaged("one of its pieces has another number of dimensions")
    begin = sum(at * stride for at, stride in zip(offsets, strides, strict=True))
    reach = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    return Box(offsets, shape, begin, begin + reach + 1)


def parts_of_box(shape: tuple[int, ...], piece: Box) -> Callable[[int, int], Iterator[tuple[int, int, int]]]:
    """Return what finds the elements of a piece in a range of the whole tensor, first and last: runs of them.

    Each run is: the first in the piece, the first in the whole tensor, and how many.
    """
    if piece.is_run:  # as mostly

        def whole(first: int, last: int) -> Iterator[tuple[int, int, int]]:
            low, high = max(first, piece.begin), min(last, piece.end)
            if low < high:
                yield low - piece.begin, low, high - low

        return whole
    lines = _Lines.of(shape, piece)

    def runs(first: int, last: int) -> Iterator[tuple[int, int, int]]:
        position, high = _before(shape, piece, first), _before(shape, piece, last)
        while position < high:
            count = min(lines.length - position % lines.length, high - position)
            yield position, lines.start(position), count
            position += count

    return runs


class _Scratch(threading.local):
    """Memory of each thread, for elements on their way: to allocate it for each read takes as long as to copy."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def take(self, size: int) -> memoryview:
        """Return memory of this size, until the next call in this thread."""
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return memoryview(self._bytes)[:size]


_scratch = _Scratch()


def read_box(spec: TensorSpec, box: Box, read: Callable[[int, memoryview], None], start: int, out: memoryview) -> None:
    """Copy what a box has of a range of the whole tensor to its places in `out`.

    Args:
        spec: of the whole tensor.
        box: the box.
        read: fills a buffer from a byte of the box on, in the box's own C order.
        start: the byte of the whole tensor with which `out` begins.
        out: takes the bytes.
    """
    size = spec.dtype.itemsize
    first, last = start // size, (start + len(out)) // size
    if box.end <= first or box.begin >= last:
        return
    if box.is_run:  # as mostly
        low, high = max(first, box.begin), min(last, box.end)
        read((low - box.begin) * size, out[(low - first) * size : (high - first) * size])
        return
    low, high = _before(spec.shape, box, first), _before(spec.shape, box, last)
    if low == high:
        return
    lines = _Lines.of(spec.shape, box)
    if high - low <= lines.length - low % lines.length:
        begin = (lines.start(low) - first) * size
        read(low * size, out[begin : begin + (high - low) * size])
        return
    data = _scratch.take((high - low) * size)
    read(low * size, data)
    lines.spread(data, low, size, first, out)


def _before(shape: tuple[int, ...], piece: Box, element: int) -> int:
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


@dataclass(frozen=True, slots=True)
class _Lines:
    """The elements of a box as lines: runs of equal length in the whole tensor.

    Attributes:
        begin: the element of the whole tensor with which the first line begins.
        length: of a line, in elements.
        steps: how the beginnings of lines lie apart, from the outermost: how many, and the stride in the whole tensor.
            A box of shape [2, 3] at the left of a tensor [4, 5] has lines of 3 elements, and the steps [(2, 5)].
    """

    begin: int
    length: int
    steps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, shape: Shape, box: Box) -> _Lines:
        """Return the lines of a box in a tensor of this shape."""
        inner = len(shape)
        while inner > 0 and box.shape[inner - 1] == shape[inner - 1]:
            inner -= 1
        inner = max(inner - 1, 0)  # the innermost dimension that is cut is still one line
        steps: list[tuple[int, int]] = []
        for dimension in reversed(range(inner)):
            count, stride = box.shape[dimension], prod(shape[dimension + 1 :])
            if steps and steps[-1][0] * steps[-1][1] == stride:
                steps[-1] = count * steps[-1][0], steps[-1][1]
            elif count > 1:
                steps.append((count, stride))
        return cls(box.begin, prod(box.shape[inner:]), tuple(reversed(steps)))

    def start(self, element: int) -> int:
        """Return where in the whole tensor an element of the box lies."""
        number, rest = divmod(element, self.length)
        begin = self.begin + rest
        for count, stride in reversed(self.steps):
            number, index = divmod(number, count)
            begin += index * stride
        return begin

    def spread(self, data: memoryview, low: int, size: int, first: int, out: memoryview) -> None:
        """Copy elements of the box, from number `low` on, to their places; `out` begins with element `first`."""
        import numpy as np  # not for headers

        count, stride = self.steps[-1]
        position, high = low, low + len(data) // size
        while position < high:
            begin, at = (self.start(position) - first) * size, (position - low) * size
            number, rest = divmod(position, self.length)
            whole = 0 if rest else min((high - position) // self.length, count - number % count)
            if whole:
                taken = whole * self.length
                lines = np.ndarray((whole, self.length * size), np.uint8, out, begin, (stride * size, 1))
                lines[:] = np.ndarray(lines.shape, np.uint8, data, at)
            else:
                taken = min(self.length - rest, high - position)
                out[begin : begin + taken * size] = data[at : at + taken * size]
            position += taken


def _is_grid(shape: Shape, pieces: list[Box]) -> bool:
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
