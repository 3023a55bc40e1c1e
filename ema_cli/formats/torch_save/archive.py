"""Where the records of an archive of torch's lie. One that is like an archive before it is recognised, and not parsed.

Archives of one run differ in checksums, and in their own name, which stands before that of each record and is mostly
the file's. All other bytes of the directory and of the local headers are compared with those of the archive before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from operator import itemgetter

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, NoWeights
from ema_cli.formats.before import Before
from ema_cli.formats.torch_save.zip_directory import (
    CENTRAL,
    LOCAL,
    ZipEntry,
    data_offsets,
    find_directory,
    is_description,
    read_entries,
)
from ema_cli.storage.ranges import near_ranges, read_each
from ema_cli.storage.source import ByteSource

Span = tuple[int, int]  # byte offset and size
_MOST_ENTRIES = 1 << 14  # of an archive that is kept
_ENTRY_BYTES = 640  # that it takes for each
_AT_ONCE = 1 << 12  # records whose local headers are checked
_MOST_HEADERS = 16  # of an archive: requests for local headers that are kept
# What no reader of ours looks at: in the directory's entries times and the checksum, in local headers sizes, too.
_UNREAD_IN_CENTRAL, _UNREAD_IN_LOCAL = (12, 20), (10, 26)


class Archive:
    """The records of an archive, by their names behind the archive's own.

    Args:
        source: the archive.
        before: what the archives of the run were that were read before.

    Raises:
        CheckpointError: for another kind of archive, a damaged one, or one with a compressed record.
    """

    def __init__(self, source: ByteSource, before: Before | None) -> None:
        self._source = source
        self._entries: Mapping[str, ZipEntry] | None = None
        directory = start, data, count = find_directory(source)
        key = start, len(data), count
        known = before.get(_Known, key) if before is not None else None
        name = known.name_in(data) if known is not None else None
        if known is not None and name is not None:
            self._name, self._known, self._directory = name, known, directory
            return
        self._entries = read_entries(source, *directory)
        self._name = _find_name(source, self._entries)
        _check_stored(source, self._entries)
        self._known = _Known.of(start, data, self._entries, self._name, compared=before is not None)
        if before is not None and self._known.directory is not None:
            before.keep(key, self._known, count * _ENTRY_BYTES)

    @property
    def count(self) -> int:
        """Return the number of records."""
        return len(self._known.entries)

    def size(self, name: str) -> int | None:
        """Return the size of a record, None where there is none of this name."""
        return self._known.size(name)

    def spans(self, names: Iterable[str], folder: str = "") -> Mapping[str, Span]:
        """Return where records lie, as far as they are there. Their local headers are checked.

        Args:
            names: their names behind `folder`, under which they are returned.
            folder: with what their names begin.

        Raises:
            CheckpointError: where one of them is not what the directory says.
        """
        key = folder, tuple(names)
        headers = self._known.headers.get(key)
        if headers is not None and headers.name_in(self._source) == self._name:
            return headers.spans
        if self._entries is None:
            self._entries = read_entries(self._source, *self._directory)
        around = f"{self._name.decode()}/{folder}"
        spans: dict[str, Span] = {}
        for begin in range(0, len(key[1]), _AT_ONCE):
            entries = {
                name: entry
                for name in key[1][begin : begin + _AT_ONCE]
                if (entry := self._entries.get(around + name)) is not None
            }
            starts = data_offsets(self._source, list(entries.values()))
            spans.update((name, (start, entries[name].size)) for name, start in zip(entries, starts, strict=True))
        if spans and self._known.directory is not None and len(self._known.headers) < _MOST_HEADERS:
            found = [self._entries[around + name] for name in spans]
            self._known.headers[key] = _Headers.of(self._source, found, len(self._name), spans)
        return spans

    def read(self, name: str) -> bytes:
        """Return the bytes of a record, which must be there."""
        return self._source.read(*self.spans((name,))[name])


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Bytes that archives which are alike have in common, and the places between them where the archive's name stands.

    Attributes:
        size: how many bytes there are in all.
        rest: takes the bytes that count from all, but for the name.
        names: takes the name, from all places.
        value: what `rest` took.
    """

    size: int
    rest: Callable[[bytes], tuple[bytes, ...]]
    names: Callable[[bytes], tuple[bytes, ...]]
    value: bytes

    @classmethod
    def of(cls, data: bytes, rest: list[slice], names: list[slice]) -> _Pattern:
        """Return the pattern of some bytes; each list has one place at least."""
        # The first is taken twice: of a single one there would be no tuple.
        take = itemgetter(rest[0], *rest)
        return cls(len(data), take, itemgetter(names[0], *names), b"".join(take(data)))

    def name_in(self, data: bytes) -> bytes | None:
        """Return the name that an archive with these bytes has, None where it is not alike."""
        names = set(self.names(data))
        is_alike = len(names) == 1 and len(data) == self.size and b"".join(self.rest(data)) == self.value
        return names.pop() if is_alike else None


@dataclass(frozen=True, slots=True)
class _Headers:
    """The local headers of some records.

    Attributes:
        reads: first byte and size of each read that takes them in; small records between them come, too.
        pattern: what has to be in these bytes, one after the other.
        spans: where the records lie.
    """

    reads: list[Span]
    pattern: _Pattern
    spans: Mapping[str, Span]

    @classmethod
    def of(cls, source: ByteSource, entries: list[ZipEntry], length: int, spans: Mapping[str, Span]) -> _Headers:
        """Return the headers of entries that are all right; `length` is that of the archive's name."""
        reads, rest, names = [], list[slice](), list[slice]()
        before = 0  # bytes of the reads so far
        ranges = ((source, entry.header_offset, LOCAL.size + len(entry.name.encode())) for entry in entries)
        for group in near_ranges(ranges):
            begin, end = group[0][1], group[-1][1] + group[-1][2]
            for _, offset, size in group:
                at = before + offset - begin
                first, after = _UNREAD_IN_LOCAL
                name = at + LOCAL.size
                names.append(slice(name, name + length))
                rest += slice(at, at + first), slice(at + after, name), slice(name + length, at + size)
            reads.append((begin, end - begin))
            before += end - begin
        data = read_each(source, reads)
        return cls(reads, _Pattern.of(data, rest, names), spans)

    def name_in(self, source: ByteSource) -> bytes | None:
        """Return the archive's name in the local headers of another archive, None where they are others."""
        return self.pattern.name_in(read_each(source, self.reads))


@dataclass(frozen=True, slots=True)
class _Known:
    """An archive that was read, for those that are like it.

    Attributes:
        directory: what has to be in the directory; None where another archive cannot be known by it.
        entries: the entries of the directory, by their names.
        around: with what these begin: the archive's own name.
        headers: local headers that were read, by the names of their records.
    """

    directory: _Pattern | None
    entries: Mapping[str, ZipEntry]
    around: str
    headers: dict[tuple[str, tuple[str, ...]], _Headers] = field(default_factory=dict)

    @classmethod
    def of(
        cls, start: int, directory: bytes, entries: Mapping[str, ZipEntry], name: bytes, *, compared: bool
    ) -> _Known:
        """Return an archive that is all right.

        Args:
            start: the byte of it at which its directory begins.
            directory: the directory.
            entries: what is in it.
            name: the name of the archive.
            compared: whether others will be compared with it.
        """
        length, around = len(name), f"{name.decode()}/"
        is_comparable = compared and len(entries) <= _MOST_ENTRIES
        if not is_comparable or not all(full.startswith(around) for full in entries):
            return cls(None, entries, around)
        first, after = _UNREAD_IN_CENTRAL
        places = [entry.listed_at - start for entry in entries.values()]
        rest, names = [slice(0, first)], []
        for at, following in zip(places, [*places[1:], len(directory)], strict=True):
            begin = at + CENTRAL.size
            names.append(slice(begin, begin + length))
            rest += slice(at + after, begin), slice(begin + length, following + first)
        return cls(_Pattern.of(directory, rest, names), entries, around)

    def size(self, name: str) -> int | None:
        """Return the size of a record by its name behind the archive's own, None where there is none."""
        entry = self.entries.get(self.around + name)
        return None if entry is None else entry.size

    def name_in(self, directory: bytes) -> bytes | None:
        """Return the name of another archive that has this directory, None where it is not alike."""
        name = None if self.directory is None else self.directory.name_in(directory)
        # What is no plain text could hide one of the names that are looked for.
        return name if name is not None and name.isascii() and not {*b"/\n"} & {*name} else None


def _find_name(source: ByteSource, entries: Mapping[str, ZipEntry]) -> bytes:
    """Return the name of the archive, the folder in which its records are; torch names it after the file."""
    prefixes = [name.removesuffix("data.pkl") for name in entries if is_description(name)]
    if len(prefixes) != 1:
        if any(name.endswith(".npy") for name in entries):
            raise NoWeights("an archive of numpy's", subject=source.path, hint="give it a name that ends in .npz")
        raise NoWeights("a zip archive, but not one that torch.save wrote", subject=source.path)
    prefix = prefixes[0]
    text = "\n".join(("", *entries))
    if f"\n{prefix}code/" in text or f"\n{prefix}constants.pkl" in text:
        raise CheckpointError(
            "a TorchScript archive, which is a program",
            subject=source.path,
            hint="save the model's state_dict() and average those files",
        )
    return prefix[:-1].encode()


def _check_stored(source: ByteSource, entries: Mapping[str, ZipEntry]) -> None:
    """Check that no record is compressed."""
    compressed = next((entry for entry in entries.values() if entry.method), None)
    if compressed is not None:
        raise CheckpointError(
            f"the zip entry '{compressed.name}' is compressed; torch stores entries as they are",
            subject=source.path,
            hint="load it with torch and save it again",
        )
