"""Tensors as `.metadata` describes them, and the records that hold their pieces: whether these lie apart."""

from __future__ import annotations

from itertools import pairwise

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Box


@dataclass(frozen=True, slots=True)
class Record:
    """Where one item lies: `size` bytes from byte `start` of a file in the folder."""

    file: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, whole: its spec, the pieces that cover it exactly once, and the record of each piece."""

    spec: TensorSpec
    pieces: tuple[Box, ...]
    records: tuple[Record, ...]


def find_clash(records: list[tuple[Record, str]]) -> tuple[str, str] | None:
    """Return the file in which one of the records overlaps another, and words for it; None where none does.

    Otherwise a few bytes could stand for any number of large records.
    """
    records.sort(key=lambda named: (named[0].file, named[0].start, named[0].size))
    for (before, name), (after, other) in pairwise(records):
        if before.file == after.file and before.start + before.size > after.start:
            return after.file, f"{shown(other)} lies over {shown(name)} at byte {after.start}"
    return None


def shown(value: object) -> str:
    """Return a text for a message, quoted and cut; of anything else only its type."""
    # Only text is shown: anything else may be endless, or a number of more digits than Python prints.
    return repr(value[:200]) if isinstance(value, str) else f"an object of type {type(value).__name__}"
