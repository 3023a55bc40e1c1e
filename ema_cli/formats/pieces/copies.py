"""Whether what several ranks have whole is the same: by the checksums of their records, else by samples."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import field

from ema_cli.dataclass import dataclass
from ema_cli.formats.torch_save.file import is_zip
from ema_cli.formats.torch_save.zip_directory import read_directory
from ema_cli.storage.source import InputFile

_SAMPLE = 4096  # bytes, at the beginning, in the middle and at the end

Place = tuple[int, int]
"""The number of a file, and a byte in it."""


@dataclass(slots=True)
class _Records:
    """The records of an archive of torch's, in the order in which they lie."""

    starts: array[int]
    sizes: array[int]
    checksums: array[int]

    @classmethod
    def of(cls, file: InputFile) -> _Records:
        """Read the directory of an archive; of a file of the old format there are none."""
        entries = sorted(read_directory(file).values(), key=lambda entry: entry.header_offset) if is_zip(file) else []
        return cls(
            array("q", [entry.header_offset for entry in entries]),
            array("q", [entry.size for entry in entries]),
            array("q", [entry.checksum for entry in entries]),
        )

    def checksum(self, start: int, size: int) -> int:
        """Return the checksum of the record in which some bytes lie if it holds nothing else; 0 where none is known."""
        number = bisect_right(self.starts, start) - 1
        return self.checksums[number] if number >= 0 and self.sizes[number] == size else 0


@dataclass(slots=True)
class CopyCheck:
    """Compares bytes in the files of several ranks.

    Attributes:
        files: the files.
    """

    files: Sequence[InputFile]
    _records: dict[int, _Records] = field(default_factory=dict)

    def alike(self, size: int, one: Place, other: Place) -> bool:
        """Return whether `size` bytes at two places are equal, as far as checksums or samples show it."""
        checksums = [self._checksum(place, size) for place in (one, other)]
        if all(checksums):
            return checksums[0] == checksums[1]
        starts = sorted({0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)})
        return all(
            self._read(one, start, min(_SAMPLE, size - start)) == self._read(other, start, min(_SAMPLE, size - start))
            for start in starts
        )

    def _checksum(self, place: Place, size: int) -> int:
        file, start = place
        if file not in self._records:
            self._records[file] = _Records.of(self.files[file])
        return self._records[file].checksum(start, size)

    def _read(self, place: Place, start: int, size: int) -> bytes:
        return self.files[place[0]].read(place[1] + start, size)
