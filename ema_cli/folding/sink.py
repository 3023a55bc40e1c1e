"""Where the bytes of an average go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.folding.blocks import Block


@dataclass(frozen=True, slots=True)
class TensorRange:
    """`size` bytes of a tensor of the output, from byte `start`; `name` is that in the checkpoints.

    What is `tied` was given under another name already: its place may be far behind that of what comes next.
    """

    name: str
    start: int
    size: int
    tied: bool = False


class Sink(Protocol):
    """Takes the bytes of one average: into files, or to compare them. Called from several threads at once."""

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Take the bytes of these ranges, which lie one after another in `data`, valid during the call only."""

    def give_up(self) -> None:
        """End soon what `write` still does in other threads: the fold has failed, and waits for them."""


def write_block(sink: Sink, block: Block, dtype: DType, data: memoryview) -> None:
    """Write a block under the first name of each piece, then each tied tensor under its other names."""
    ranges = [
        TensorRange(piece.group.names[0], dtype.nbytes(piece.start), dtype.nbytes(piece.count))
        for piece in block.pieces
    ]
    sink.write(ranges, data)
    position = 0
    for piece, part in zip(block.pieces, ranges, strict=True):
        for name in piece.group.names[1:]:
            sink.write([TensorRange(name, part.start, part.size, tied=True)], data[position : position + part.size])
        position += part.size
