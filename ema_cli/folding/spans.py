"""Where the bytes of blocks lie in open files; what lies in local ones the kernel reads and adds, if it can."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TypeVar

from ema_cli.checkpoint import Tensors
from ema_cli.dtypes import DType
from ema_cli.errors import CheckpointError
from ema_cli.folding.blocks import Piece
from ema_cli.folding.kernel import BlockSums, ReadEnd, Spans
from ema_cli.storage.local_file import LocalFile, held_open
from ema_cli.storage.source import FileRegion

_MOST_SPANS = 8  # of a row: more of them are small, and come several with one read

File = TypeVar("File")
Span = tuple[File, int, int]
"""A file, the first byte, and the number of bytes."""


def spans_in(kind: type[File], tensors: Tensors, pieces: Sequence[Piece], dtype: DType) -> list[Span[File]] | None:
    """Return where the bytes of a block lie in one checkpoint; None where not all lie in a few runs of such files."""
    spans: list[Span[File]] = []
    for piece in pieces:
        runs = tensors.runs(piece.group.names[0], dtype.nbytes(piece.start), dtype.nbytes(piece.count))
        if runs is None:
            return None
        for source, offset, size in runs:
            while isinstance(source, FileRegion):
                if offset + size > source.size:
                    return None  # who reads it there says what is wrong
                offset, source = source.start + offset, source.file
            if not isinstance(source, kind):
                return None
            if spans and spans[-1][0] is source and sum(spans[-1][1:]) == offset:
                spans[-1] = source, spans[-1][1], spans[-1][2] + size
            elif len(spans) == _MOST_SPANS:
                return None
            else:
                spans.append((source, offset, size))
    return spans


def name_tensor(error: CheckpointError, tensors: Tensors, pieces: Sequence[Piece], dtype: DType) -> CheckpointError:
    """Name in an error the first tensor of a block that has the byte that cannot be read, or others behind it."""
    for piece in pieces if error.at_byte is not None else ():
        name = piece.group.names[0]
        for source, offset, size in tensors.runs(name, dtype.nbytes(piece.start), dtype.nbytes(piece.count)) or ():
            while isinstance(source, FileRegion):
                offset, source = source.start + offset, source.file
            if source.path == error.subject and error.at_byte is not None and error.at_byte < offset + size:
                error.fact, error.at_byte = f"{error.fact}, in '{name}'", None
    return error


def read_and_add(
    sums: BlockSums, numbers: Sequence[int], rows: Sequence[Sequence[Span[LocalFile]]], stop: bytearray
) -> ReadEnd | None:
    """Read the blocks of these checkpoints, the spans of each in `rows`, and add them.

    None where that takes too many open files: nothing is read then.

    Raises:
        CheckpointError: where a file ends early, has changed or cannot be read.
    """
    spans = [span for row in rows for span in row]
    with held_open(file for file, _, _ in spans) as descriptors:
        if descriptors is None:
            return None
        table = array("q")
        for descriptor, (_, offset, size) in zip(descriptors, spans, strict=True):
            table.extend((descriptor, offset, size))
        offsets = [row[0][1] if row else 0 for row in rows]
        end = sums.read_and_add(numbers, Spans(offsets, table, array("q", map(len, rows))), stop)
    if end.span >= 0:
        raise spans[end.span][0].unread(end.offset, end.error)
    return end
