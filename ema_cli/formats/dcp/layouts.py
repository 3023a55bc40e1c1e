"""How tensors are cut into pieces: tensors that are cut alike, as those of all layers are, share what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from math import prod
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Box, CoverCheck, Damaged, Shape, make_box
from ema_cli.formats.dcp.values import distinct, list_of, shape_of, state_of
from ema_cli.formats.pickles.templates import Rows

_PIECE = ("offsets", "sizes")
_MAX_SIDES = 4_000_000  # of all pieces of all tensors, however often one piece, or one list of them, is repeated
_MAX_LAYOUTS = 64  # that are kept; with so few no file can slow it by layouts whose hashes are equal


@dataclass(slots=True)
class Layouts:
    """The layouts of the tensors of a folder."""

    _pieces: dict[tuple[Shape, tuple[Shape, ...], tuple[Shape, ...]], tuple[Box, ...]] = field(default_factory=dict)
    _sides: int = 0
    _cover: CoverCheck = field(default_factory=CoverCheck)

    def of(self, shape: Shape, chunks: object) -> tuple[Box, ...]:
        """Return the pieces of a tensor of this shape, in order of their offsets.

        Raises:
            Damaged: where they do not cover it exactly once.
        """
        offsets, sizes = list[Any](), list[Any]()
        for chunk in list_of(chunks):
            if isinstance(chunk, Rows):
                offsets += chunk.fields.get(_PIECE[0], ())
                sizes += chunk.fields.get(_PIECE[1], ())
            else:
                state = state_of(chunk, _PIECE)
                offsets.append(state["offsets"])
                sizes.append(state["sizes"])
        self._sides += len(offsets) * (len(shape) + 1)
        if self._sides > _MAX_SIDES:
            raise Damaged("it is cut into too many pieces, all tensors before it included")
        for each in (*distinct(offsets), *distinct(sizes)):
            shape_of(each)
        key = shape, tuple(offsets), tuple(sizes)
        pieces = self._pieces.get(key)
        if pieces is None:
            if len(self._pieces) >= _MAX_LAYOUTS:
                self._pieces.clear()
            self._pieces[key] = pieces = self._checked(shape, offsets, sizes)
        return pieces

    def _checked(self, shape: Shape, offsets: Sequence[Shape], sizes: Sequence[Shape]) -> tuple[Box, ...]:
        strides = [prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
        pieces = [make_box(at, size, strides) for at, size in zip(offsets, sizes, strict=True)]
        # A rank whose share is empty may be listed all the same.
        pieces = sorted((piece for piece in pieces if prod(piece.shape)), key=lambda piece: piece.offsets)
        self._cover.check(shape, pieces)
        return tuple(pieces)
