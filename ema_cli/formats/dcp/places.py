"""Where the records of a folder lie, as `.metadata` stores it: each by the name of its tensor, and its place in it."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import field
from itertools import pairwise
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Box, Damaged, Shape
from ema_cli.formats.dcp.pieces import Record, Records, shown
from ema_cli.formats.dcp.values import State, are_counts, distinct, is_count, shape_of, state_of
from ema_cli.formats.pickles.templates import Rows
from ema_cli.formats.shards import is_plain_name

# The fields by which each class is known, torch's or a trainer's own.
_INDEX = ("fqn",)
_STORAGE = ("relative_path", "offset", "length")
_OTHER_FORM = "transform_descriptors"  # says how it is compressed or encrypted


@dataclass(slots=True)
class Places:
    """The records of pieces of tensors.

    Attributes:
        items: the record of each value that is no tensor, by name.
    """

    items: dict[str, Record] = field(default_factory=dict)
    _records: Records = field(default_factory=Records)
    _offsets: list[Shape] = field(default_factory=list)  # of each piece in its tensor
    _rows: dict[str, array[int]] = field(default_factory=dict)  # of each tensor
    _plain: set[str] = field(default_factory=set)  # names of files that were seen to be names

    def read(self, stored: dict[Any, Any], blobs: Collection[str]) -> None:
        """Read what is stored where.

        Args:
            stored: as unpickled.
            blobs: the names of the values that are no tensors.

        Raises:
            Damaged: where it says no place in a file of the folder.
        """
        for key, info in stored.items():
            if isinstance(key, Rows) and isinstance(info, Rows):
                if not self._read_columns(key, info, blobs):
                    for index, place in zip(key.states(), info.states(), strict=True):
                        self._read_one(index, place, blobs)
            else:
                self._read_one(state_of(key, _INDEX), state_of(info, _STORAGE), blobs)

    @property
    def names(self) -> Collection[str]:
        """Return the names of all of which pieces are stored."""
        return self._rows.keys()

    def of(self, name: str, pieces: Sequence[Box]) -> Records:
        """Return the records of the pieces of a tensor, these in order of their offsets.

        Raises:
            Damaged: where one has none.
        """
        # Sorted, not in a dict: tuples of numbers can be chosen so that all their hashes are equal.
        rows = sorted(self._rows.get(name, ()), key=self._offsets.__getitem__)
        offsets = list(map(self._offsets.__getitem__, rows))
        if offsets != [piece.offsets for piece in pieces]:
            last = [one != other for one, other in pairwise([*offsets, None])]  # of equal ones the last counts
            found = iter([(at, row) for at, row, taken in zip(offsets, rows, last, strict=True) if taken])
            rows = []
            for piece in pieces:
                row = next((row for at, row in found if at == piece.offsets), None)
                if row is None:
                    raise Damaged(f"its piece at {list(piece.offsets)} is nowhere stored")
                rows.append(row)
        return self._records.at(rows)

    def _read_one(self, index: State, info: State, blobs: Collection[str]) -> None:
        name = index.get("fqn")
        if not isinstance(name, str):
            raise Damaged("it stores something without a name")
        record = self._record(name, info)
        if name in blobs:
            self.items[name] = record
        else:
            self._add([name], [shape_of(index.get("offset") or ())], Records.of([record]))

    def _read_columns(self, index: Rows, info: Rows, blobs: Collection[str]) -> bool:
        """Read many at once; return False where one has something about it that has to be looked at by itself."""
        names, offsets = (index.fields.get(name, ()) for name in ("fqn", "offset"))
        files, starts, sizes = (info.fields.get(name, ()) for name in _STORAGE)
        whole = index.count == info.count and all(
            len(column) == index.count for column in (names, offsets, files, starts, sizes)
        )
        if not (whole and are_counts(starts) and are_counts(sizes) and not any(info.fields.get(_OTHER_FORM, ()))):
            return False
        if not all(isinstance(name, str) and name not in blobs for name in distinct(names)):
            return False
        if not all(isinstance(file, str) and self._is_plain(file) for file in distinct(files)):
            return False
        if not all(isinstance(offset, tuple) and shape_of(offset) for offset in distinct(offsets)):
            return False
        self._add(names, offsets, Records(list(files), array("q", starts), array("q", sizes)))
        return True

    def _record(self, name: str, info: State) -> Record:
        """Return the record that a storage info describes."""
        file, start, size = info.get("relative_path"), info.get("offset"), info.get("length")
        if not isinstance(file, str) or not self._is_plain(file):
            raise Damaged(f"'{name}' is said to be in {shown(file)}, which is not a file name")
        if not (is_count(start) and is_count(size)):
            raise Damaged(f"'{name}' lies at no place in its file")
        if info.get(_OTHER_FORM):
            raise Damaged(f"'{name}' is stored compressed or encrypted, which is not read")
        return Record(file, start, size)

    def _is_plain(self, file: str) -> bool:
        if file not in self._plain and is_plain_name(file):
            self._plain.add(file)
        return file in self._plain

    def _add(self, names: Sequence[str], offsets: Sequence[Shape], records: Records) -> None:
        for row, name in enumerate(names, len(self._records)):
            if name not in self._rows:
                self._rows[name] = array("I")
            self._rows[name].append(row)
        self._offsets += offsets
        self._records.extend(records)
