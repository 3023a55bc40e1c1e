"""Tensors as `.metadata` describes them, and the records that hold their pieces: whether these lie apart."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from itertools import pairwise
from typing import overload

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Box


@dataclass(frozen=True, slots=True)
class Record:
    """Where one item lies: `size` bytes from byte `start` of a file in the folder."""

    file: str
    start: int
    size: int


@dataclass(slots=True)
class Records(Sequence[Record]):
    """Records as columns, as there may be hundreds of thousands: their files, first bytes, and sizes in bytes."""

    files: list[str] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))

    @classmethod
    def of(cls, records: Iterable[Record]) -> Records:
        """Return these records."""
        columns = cls()
        for record in records:
            columns.files.append(record.file)
            columns.starts.append(record.start)
            columns.sizes.append(record.size)
        return columns

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, row: int) -> Record: ...

    @overload
    def __getitem__(self, row: slice) -> Records: ...

    def __getitem__(self, row: int | slice) -> Record | Records:
        if isinstance(row, slice):
            return Records(self.files[row], self.starts[row], self.sizes[row])
        return Record(self.files[row], self.starts[row], self.sizes[row])

    def __iter__(self) -> Iterator[Record]:
        return map(Record, self.files, self.starts, self.sizes)

    def at(self, rows: Sequence[int]) -> Records:
        """Return the records in these rows."""
        starts, sizes = array("q", map(self.starts.__getitem__, rows)), array("q", map(self.sizes.__getitem__, rows))
        return Records(list(map(self.files.__getitem__, rows)), starts, sizes)

    def extend(self, other: Records) -> None:
        """Add records."""
        self.files += other.files
        self.starts += other.starts
        self.sizes += other.sizes


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, whole: its spec, the pieces that cover it exactly once, and the record of each piece."""

    spec: TensorSpec
    pieces: tuple[Box, ...]
    records: Records


def find_clash(records: Records, name: Callable[[int], str]) -> tuple[str, str] | None:
    """Return the file in which one of the records overlaps another, and words for it; None where none does.

    Otherwise a few bytes could stand for any number of large records.

    Args:
        records: the records.
        name: says what the record of a row holds.
    """
    rows: dict[str, array[int]] = {}
    for row, file in enumerate(records.files):
        if file not in rows:
            rows[file] = array("I")
        rows[file].append(row)
    for file in sorted(rows):
        own = rows[file]
        starts, sizes = map(records.starts.__getitem__, own), map(records.sizes.__getitem__, own)
        for (start, size, before), (after, _, other) in pairwise(sorted(zip(starts, sizes, own, strict=True))):
            if start + size > after:
                return file, f"{shown(name(other))} lies over {shown(name(before))} at byte {after}"
    return None


def shown(value: object) -> str:
    """Return a text for a message, quoted and cut; of anything else only its type."""
    # Only text is shown: anything else may be endless, or a number of more digits than Python prints.
    return repr(value[:200]) if isinstance(value, str) else f"an object of type {type(value).__name__}"
