"""Compare the copies of averages in what is in the form of its input: what a trainer keeps of weights in two types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from ema_cli.formats.copies.copied_file import CopiedFile
from ema_cli.formats.copies.stored import StoredPiece
from ema_cli.release.snapshot import Snapshot
from ema_cli.writing.like_input import Likeness

_ELEMENTS = 1 << 18  # compared at once


class Published(Protocol):
    """Gives the averages that were published."""

    def read(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of a tensor."""


def copy_differences(snapshot: Snapshot, likeness: Likeness, published: Mapping[str, Published]) -> list[str]:
    """Return a problem for each tensor of which a copy is not the published average, rounded.

    The averages themselves must have been compared before.
    """
    files = {file.source.path: file for file in likeness.files}
    counts = {name: spec.count for file in likeness.files for name, spec in file.table.specs.items()}
    problems = []
    for name, pieces in likeness.pieces.items():
        for piece in (piece for piece in pieces if piece.copy_of is not None):
            file = files[piece.file.path]
            if any(_differ(snapshot, file, piece, name, counts[name], published[name])):
                path = snapshot.published.path / file.name if snapshot.published.is_folder else snapshot.published.path
                problems.append(f"{path}: '{name}' is not the average that lies elsewhere, too")
    return problems


def _differ(
    snapshot: Snapshot, file: CopiedFile, piece: StoredPiece, name: str, count: int, published: Published
) -> Iterator[bool]:
    """Yield of each stretch of a copy, of a tensor of `count` elements, whether it is not its average, rounded."""
    shift, size = file.around.shift(piece.base), piece.dtype.itemsize
    different: list[bool] = []

    def compare(offset: int, part: memoryview) -> None:
        there = snapshot.files[file.name].read(offset + shift, len(part))
        different.append(there != bytes(part))

    for first in range(0, count, _ELEMENTS):
        last = min(first + _ELEMENTS, count)
        parts = list(piece.parts(first, last))
        average = memoryview(bytearray((last - first) * size if parts else 0))
        if parts:
            published.read(name, first * size, average)
        for inner, whole, elements in parts:
            piece.write(compare, inner, average[(whole - first) * size :][: elements * size])
        yield any(different)
        different.clear()
