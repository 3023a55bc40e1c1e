"""Read the directory of a zip archive strictly: where the bytes of each entry lie in the file.

Only archives such as torch writes are accepted: each name once, no entry outside the file, none over another.
Compressed entries are marked, and not inflated here: a small one can hide gigabytes, and torch writes none for tensors.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.dataclass import dataclass
from ema_cli.errors import CUT_SHORT, CheckpointError, IncompleteCheckpoint
from ema_cli.storage.ranges import read_ranges
from ema_cli.storage.source import ByteSource

END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
CHECKSUM_FOLLOWS = 1 << 3  # in the flags: behind the bytes, not before them
# What is read of the two. Of the directory's: signature, flags, method, checksum, stored size, size, lengths of name,
# extra fields and comment, place; of the local header: signature, method, lengths of name and extra fields.
_READ_CENTRAL = struct.Struct("<4s4x2H4x3L3H8xL")
_READ_LOCAL = struct.Struct("<4s4xH16x2H")
_NUMBERS = 7  # of an entry, beside its name
CENTRAL_CHECKSUM, _LOCAL_CHECKSUM = 16, 14  # the byte at which it stands in each
_LOCAL_FLAGS = 6
IN_64 = 0xFFFFFFFF  # in a field of 32 bits: the number is in a zip64 record, which has fields of 64 bits
_MAX_DIRECTORY_BYTES = 256 << 20
_MAX_COMMENT_BYTES = 65535
_AT_ONCE = 1 << 12  # entries whose places are found
_MAX_ENTRIES = 4 * MAX_TENSORS  # the optimizer has some for each of the model's


@dataclass(slots=True)
class ZipEntry:
    """One entry of the archive.

    Attributes:
        name: its name.
        size: the size of its bytes in the file.
        header_offset: the byte of the file at which its local header begins.
        method: how its bytes are compressed; 0 where they are not.
        checksum: their CRC-32; 0 where the writer computed none.
        end: the byte at which the next entry, or the directory, begins.
        listed_at: the byte of the file at which its entry in the directory begins.
        unpacked: the size of its content, which is `size` where nothing is compressed.
    """

    name: str
    size: int
    header_offset: int
    method: int = 0
    checksum: int = 0
    end: int = 0
    listed_at: int = 0
    unpacked: int = 0


class ZipDirectory(Mapping[str, ZipEntry]):
    """The entries of a directory by name, in its order.

    Kept as numbers side by side: a hundred thousand entries as objects would take three times as much.
    """

    def __init__(self) -> None:
        self._begins: dict[str, int] = {}  # name -> where its numbers begin
        self._numbers = array("Q")

    def __len__(self) -> int:
        return len(self._begins)

    def __iter__(self) -> Iterator[str]:
        return iter(self._begins)

    def __contains__(self, name: object) -> bool:
        return name in self._begins

    def __getitem__(self, name: str) -> ZipEntry:
        begin = self._begins[name]
        return ZipEntry(name, *self._numbers[begin : begin + _NUMBERS])

    def add(self, entry: ZipEntry) -> None:
        """Add an entry, whose `end` is not known yet."""
        self._begins[entry.name] = len(self._numbers)
        self._numbers.extend(
            (
                entry.size, entry.header_offset, entry.method, entry.checksum, entry.end, entry.listed_at,
                entry.unpacked,
            )
        )  # fmt: skip

    def set_ends(self, file: ByteSource, start: int) -> None:
        """Check that no entry overlaps another, nor the directory, which begins at byte `start`; set their `end`."""
        numbers, end = self._numbers, start
        for begin in sorted(self._begins.values(), key=lambda begin: numbers[begin + 1], reverse=True):
            size, offset = numbers[begin : begin + 2]
            taken = offset + LOCAL.size + size
            if taken > end:
                name = next(name for name, at in self._begins.items() if at == begin)
                what = "overlaps another" if taken <= start else "reaches past the end of the data"
                raise CheckpointError(f"the zip entry '{name}' {what}", subject=file.path)
            numbers[begin + 4], end = end, offset


def read_directory(file: ByteSource) -> ZipDirectory:
    """Return the archive's entries by name.

    Raises:
        IncompleteCheckpoint: where the directory, which is written last, is missing.
        CheckpointError: for compressed, encrypted, repeated or overlapping entries.
    """
    return read_entries(file, *find_directory(file))


def find_directory(file: ByteSource) -> tuple[int, bytes, int]:
    """Return where the directory begins, its bytes, and the number of its entries; raise as `read_directory`."""
    start, size, count = locate_directory(file)
    if size > _MAX_DIRECTORY_BYTES or start + size > file.size:
        raise CheckpointError("its zip directory lies outside the file", subject=file.path)
    if count > _MAX_ENTRIES:
        raise CheckpointError(
            f"its zip directory has {count} entries; at most {_MAX_ENTRIES} are read", subject=file.path
        )
    return start, file.read(start, size), count


def read_entries(file: ByteSource, start: int, directory: bytes, count: int) -> ZipDirectory:
    """Return the entries in a directory, given what `find_directory` returns; raise as `read_directory`."""
    entries = _read_entries(file, start, directory, count)
    entries.set_ends(file, start)
    return entries


def is_description(name: str) -> bool:
    """Return whether a record's name is that of the description by torch, in the archive's own folder."""
    return name.endswith("/data.pkl") and name.count("/") == 1


def data_offset(file: ByteSource, entry: ZipEntry) -> int:
    """Return the byte at which the entry's data begin, behind its local header."""
    return data_offsets(file, [entry])[0]


def data_offsets(file: ByteSource, entries: Sequence[ZipEntry]) -> list[int]:
    """Return the byte at which the data of each entry begin, behind its local header.

    Raises:
        CheckpointError: for an entry whose local header is not what the directory says.
    """
    names = [entry.name.encode() for entry in entries]
    sizes = [LOCAL.size + len(name) for name in names]  # the names are known from the directory
    headers = bytearray(sum(sizes))
    read_ranges(zip(repeat(file), [entry.header_offset for entry in entries], sizes, strict=False), memoryview(headers))
    offsets = []
    position = 0
    for entry, name, size in zip(entries, names, sizes, strict=True):
        signature, method, name_length, extra_length = _READ_LOCAL.unpack_from(headers, position)
        position += size
        is_same = name_length == len(name) and headers.endswith(name, 0, position)
        if signature != b"PK\x03\x04" or method != entry.method or not is_same:
            raise CheckpointError(f"the zip entry '{entry.name}' is damaged", subject=file.path)
        start = entry.header_offset + size + extra_length
        if start + entry.size > entry.end:  # the local header, read only now, is longer than it should be
            raise CheckpointError(f"the zip entry '{entry.name}' overlaps another", subject=file.path)
        offsets.append(start)
    return offsets


def checksum_places(file: ByteSource, entries: Sequence[ZipEntry]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield of each entry where its data begin, and the bytes of the file at which their checksum stands.

    That is beside the data, and in the directory. Entries come in the order in which they lie; raise as `data_offsets`.
    """
    for begin in range(0, len(entries), _AT_ONCE):
        some = entries[begin : begin + _AT_ONCE]
        starts = data_offsets(file, some)
        flags = _read_all(file, [entry.header_offset + _LOCAL_FLAGS for entry in some], 2)
        follows = [int.from_bytes(each, "little") & CHECKSUM_FOLLOWS for each in flags]
        ends = [start + entry.size for start, entry in zip(starts, some, strict=True)]
        signatures = iter(_read_all(file, [end for end, is_behind in zip(ends, follows, strict=True) if is_behind], 4))
        for entry, start, end, is_behind in zip(some, starts, ends, follows, strict=True):
            beside = entry.header_offset + _LOCAL_CHECKSUM
            if is_behind:
                beside = end + 4 * (next(signatures) == b"PK\x07\x08")
            yield start, (beside, entry.listed_at + CENTRAL_CHECKSUM)


def _read_all(file: ByteSource, offsets: Sequence[int], size: int) -> list[bytes]:
    """Return so many bytes from each of several places on, which are in order."""
    out = bytearray(size * len(offsets))
    read_ranges(((file, offset, size) for offset in offsets), memoryview(out))
    return [bytes(out[at : at + size]) for at in range(0, len(out), size)]


def checksum_offsets(data: bytes) -> Iterator[int]:
    """Yield the bytes at which checksums stand in `data`, which is a directory, a local header or something else.

    The first two are recognised by their signatures. Nothing else that `read_directory` and `data_offset` read holds
    checksums.
    """
    if data.startswith(b"PK\x03\x04"):
        yield _LOCAL_CHECKSUM
    position = 0
    while data.startswith(b"PK\x01\x02", position) and position + CENTRAL.size <= len(data):
        yield position + CENTRAL_CHECKSUM
        name_length, extra_length, comment_length = CENTRAL.unpack_from(data, position)[10:13]
        position += CENTRAL.size + name_length + extra_length + comment_length


def locate_directory(file: ByteSource) -> tuple[int, int, int]:
    """Return start, size and number of entries of the central directory."""
    at, tail, tail_size = -1, b"", 0
    # torch writes no comment behind the record, which is looked for in a few bytes first.
    for most in (END.size, END.size + _MAX_COMMENT_BYTES):
        tail_size = min(file.size, most)
        tail = file.read(file.size - tail_size, tail_size)
        at = tail.rfind(b"PK\x05\x06")
        if at >= 0:
            break
    if at < 0 or at + END.size > len(tail):
        raise IncompleteCheckpoint(
            "cut short: the zip directory at its end is missing",
            subject=file.path,
            hint=CUT_SHORT,
        )
    _, disk, _, _, count, size, start, _ = END.unpack_from(tail, at)
    end_offset = file.size - tail_size + at
    if end_offset >= END64_LOCATOR.size:
        locator = file.read(end_offset - END64_LOCATOR.size, END64_LOCATOR.size)
        signature, _, offset64, _ = END64_LOCATOR.unpack(locator)
        if signature == b"PK\x06\x07":
            if offset64 + END64.size > file.size:
                raise CheckpointError("its zip directory is damaged", subject=file.path)
            fields = END64.unpack(file.read(offset64, END64.size))
            if fields[0] != b"PK\x06\x06":
                raise CheckpointError("its zip directory is damaged", subject=file.path)
            count, size, start = fields[7:]
            end_offset = offset64
    if disk != 0:
        raise CheckpointError("a zip archive in several parts is no torch checkpoint", subject=file.path)
    if end_offset != start + size <= file.size:  # readers differ on which of the two is believed
        raise CheckpointError("its zip directory is not where its end says", subject=file.path)
    return int(start), int(size), int(count)


def _read_entries(file: ByteSource, start: int, directory: bytes, count: int) -> ZipDirectory:
    """Return the entries by name, from the directory that begins at byte `start`."""
    entries = ZipDirectory()
    unpack, position = _READ_CENTRAL.unpack_from, 0
    for _ in range(count):
        try:
            signature, flags, method, checksum, stored, size, *lengths, offset = unpack(directory, position)
        except struct.error:
            raise CheckpointError("its zip directory is damaged", subject=file.path) from None
        listed_at, begin = start + position, position + CENTRAL.size
        extra = begin + lengths[0]
        position = extra + lengths[1] + lengths[2]
        if signature != b"PK\x01\x02" or position > len(directory):
            raise CheckpointError("its zip directory is damaged", subject=file.path)
        try:
            name = directory[begin:extra].decode()
        except UnicodeDecodeError:
            raise CheckpointError("a zip entry's name is not UTF-8", subject=file.path) from None
        if flags & 1:
            raise CheckpointError(f"the zip entry '{name}' is encrypted", subject=file.path)
        if IN_64 in (stored, size, offset):
            size, stored, offset = _resolve_64(directory[extra : extra + lengths[1]], size, stored, offset)
        if size != stored and method == 0:
            raise CheckpointError(f"the zip entry '{name}' gives two sizes, {size} and {stored}", subject=file.path)
        if name in entries:
            raise CheckpointError(f"the zip entry '{name}' stands twice", subject=file.path)
        entries.add(ZipEntry(name, stored, offset, method, checksum, listed_at=listed_at, unpacked=size))
    return entries


def _resolve_64(extra: bytes, size: int, stored: int, header_offset: int) -> tuple[int, int, int]:
    """Return the three numbers, those that do not fit into 32 bits from the entry's zip64 record."""
    values = [size, stored, header_offset]
    position = 0
    while IN_64 in values and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1:
            offset = position
            for index, value in enumerate(values):
                if value == IN_64:
                    (values[index],) = struct.unpack_from("<Q", extra, offset)
                    offset += 8
            break
        position += length
    return values[0], values[1], values[2]
