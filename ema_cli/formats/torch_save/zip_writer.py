"""Lay out the records of a zip archive as torch's own writer does, before their bytes are known.

Nothing is compressed. The bytes of each record begin at a multiple of 64, and their checksum follows them. All places
are torch's to the byte, which can compute them too (`torch.serialization.config`: `calculate_storage_offsets`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import field

from ema_cli.dataclass import dataclass
from ema_cli.formats.torch_save.zip_directory import CENTRAL, CHECKSUM_FOLLOWS, END, END64, END64_LOCATOR, IN_64, LOCAL

ALIGNMENT = 64
_DESCRIPTOR, _DESCRIPTOR64 = struct.Struct("<4s3L"), struct.Struct("<4sL2Q")
_UTF8 = 1 << 11
_VERSION, _VERSION64 = 20, 45  # of the zip format, which a reader must know
_DATE = 1 << 5 | 1  # the first date of the format: equal archives have equal bytes
_PADDING = struct.Struct("<2sH")  # the name of an extra field, FB as in torch's files, and its length


@dataclass(slots=True)
class ZipRecord:
    """One record of the archive.

    Attributes:
        name: its name.
        size: the size of its bytes.
        at: the byte of the file at which its local header begins.
        begin: the byte at which its bytes begin.
        end: the byte at which the next record's local header begins.
    """

    name: str
    size: int
    at: int
    begin: int = field(init=False)
    end: int = field(init=False)
    _numbers: bytes = field(init=False)  # the zip64 record: numbers that do not fit into 32 bits

    def __post_init__(self) -> None:
        numbers = [self.size] * 2 * (self.size >= IN_64) + [self.at] * (self.at >= IN_64)
        self._numbers = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
        least = self.at + LOCAL.size + len(self.name.encode()) + len(self._numbers) + _PADDING.size
        self.begin = least + -least % ALIGNMENT
        self.end = self.begin + self.size
        if self.size:
            self.end += _DESCRIPTOR64.size if numbers else _DESCRIPTOR.size

    @property
    def header(self) -> bytes:
        """Return the local header, up to the record's bytes. Size and checksum are not in it: they follow the bytes."""
        name = self.name.encode()
        extra = self.begin - self.at - LOCAL.size - len(name)
        fixed = LOCAL.pack(b"PK\x03\x04", self._version, self._flags, 0, 0, _DATE, 0, 0, 0, len(name), extra)
        padding = _PADDING.pack(b"FB", extra - len(self._numbers) - _PADDING.size)
        return (fixed + name + self._numbers + padding).ljust(self.begin - self.at, b"Z")

    def descriptor(self, checksum: int) -> bytes:
        """Return the checksum and sizes that follow the record's bytes; nothing follows an empty record."""
        if not self.size:
            return b""
        layout = _DESCRIPTOR64 if self._numbers else _DESCRIPTOR
        return layout.pack(b"PK\x07\x08", checksum, self.size, self.size)

    def entry(self, checksum: int) -> bytes:
        """Return the record's entry in the directory."""
        size, at = min(self.size, IN_64), min(self.at, IN_64)
        fixed = CENTRAL.pack(
            b"PK\x01\x02", self._version, self._version, self._flags, 0, 0, _DATE, checksum, size, size,
            len(self.name.encode()), len(self._numbers), 0, 0, 0, 0, at,
        )  # fmt: skip
        return fixed + self.name.encode() + self._numbers

    @property
    def entry_size(self) -> int:
        """Return the size of the entry."""
        return CENTRAL.size + len(self.name.encode()) + len(self._numbers)

    @property
    def _flags(self) -> int:
        return _UTF8 | CHECKSUM_FOLLOWS if self.size else _UTF8

    @property
    def _version(self) -> int:
        return _VERSION64 if self._numbers else _VERSION


def place_records(sizes: Iterable[tuple[str, int]], at: int) -> Iterator[ZipRecord]:
    """Yield records of the names and sizes, one behind the other from byte `at` on."""
    for name, size in sizes:
        record = ZipRecord(name, size, at)
        yield record
        at = record.end


def whole_record(record: ZipRecord, content: bytes) -> tuple[bytes, bytes]:
    """Return the bytes of a record with its content, and of its entry in the directory."""
    checksum = zlib.crc32(content)
    return record.header + content + record.descriptor(checksum), record.entry(checksum)


END_SIZE = END64.size + END64_LOCATOR.size + END.size


def directory_end(start: int, size: int, count: int) -> bytes:
    """Return the records behind the directory, which say where it is: in zip64 form too, as torch writes them.

    Args:
        start: the byte at which the directory begins.
        size: the size of the directory in bytes.
        count: the number of its entries.
    """
    wide = END64.pack(b"PK\x06\x06", END64.size - 12, _VERSION64, _VERSION64, 0, 0, count, count, size, start)
    locator = END64_LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    few = min(count, 0xFFFF)
    return wide + locator + END.pack(b"PK\x05\x06", 0, 0, few, few, min(size, IN_64), min(start, IN_64), 0)
