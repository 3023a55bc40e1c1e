"""Compare the copies of averages in what is in the form of its input: what a trainer keeps of weights in two types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from ema_cli.dtypes import DType
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
    problems = []
    for name, pieces in likeness.pieces.items():
        for piece in (piece for piece in pieces if piece.copy_of is not None):
            file = files[piece.file.path]
            if any(_differ(snapshot, file, piece, name, published[name], piece.dtype)):
                path = snapshot.published.path / file.name if snapshot.published.is_folder else snapshot.published.path
                problems.append(f"{path}: '{name}' is not the average that lies elsewhere, too")
    return problems


def _differ(
    snapshot: Snapshot, file: CopiedFile, piece: StoredPiece, name: str, published: Published, dtype: DType
) -> Iterator[bool]:
    """Yield of each stretch of a copy whether it is not the published average, rounded."""
    shift = file.around.shift(piece.base)
    for first in range(0, piece.spec.count, _ELEMENTS):
        count = min(_ELEMENTS, piece.spec.count - first)
        average = memoryview(bytearray(dtype.nbytes(count)))
        published.read(name, dtype.nbytes(first), average)
        different: list[bool] = []

        def compare(offset: int, part: memoryview, different: list[bool] = different) -> None:
            there = snapshot.files[file.name].read(offset + shift, len(part))
            different.append(there != bytes(part))

        piece.write(compare, first, average)
        yield any(different)
