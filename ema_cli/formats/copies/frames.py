"""What stands around the tensors of a file when it is written over again, for each container: with our mark, if it can.

torch zip: a record of ours behind all others, and the checksums of those with tensors. safetensors: our key in the
header's metadata. Files of torch's old format, and shards of torch.distributed.checkpoint, have no place for a mark.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from ema_cli.dataclass import dataclass
from ema_cli.formats.copies.copied_file import Copied, Frame, Span, Summed
from ema_cli.formats.mark import METADATA_KEY, RECORD
from ema_cli.formats.torch_save.file import is_zip
from ema_cli.formats.torch_save.zip_directory import (
    CENTRAL_CHECKSUM,
    ZipDirectory,
    ZipEntry,
    checksum_places,
    data_offsets,
    is_description,
    locate_directory,
    read_directory,
)
from ema_cli.formats.torch_save.zip_writer import ZipRecord, directory_end, whole_record
from ema_cli.storage.source import ByteSource, FileRegion, InputFile


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left of a file when something is left out of it.

    Attributes:
        description: of an archive of torch's, the pickle; None for a file without.
        storages: the keys of the storages that the description still names.
        kept: of a shard, the ranges that stay, in order.
    """

    description: bytes | None = None
    storages: frozenset[str] = frozenset()
    kept: Sequence[Span] = ()


def frame_of(
    file: InputFile, replaced: Sequence[Span], archives: Iterable[FileRegion], mark: bytes, cut: Cut | None = None
) -> Frame:
    """Return what stands around the tensors of `file`.

    Args:
        file: the original.
        replaced: the ranges of it that are replaced, in order.
        archives: archives of torch's within it, in which some of them lie.
        mark: the content of our mark.
        cut: what is left where something is left out; None where nothing is.
    """
    if file.path.name.lower().endswith(".safetensors"):
        return _safetensors(file, mark)
    archives = list(archives)
    if is_zip(file) and not archives and (cut is None or cut.description is not None):
        return _torch_zip(file, replaced, mark) if cut is None else _cut_zip(file, replaced, mark, cut)
    copied, end = [], 0
    for begin, behind in [(0, file.size)] if cut is None else cut.kept:
        copied.append(Copied(begin, behind, end - begin))
        end += behind - begin
    frame = Frame(copied)
    starts = [(archive, archive.start + frame.shift(archive.start)) for archive in archives]
    summed = [
        Summed(start + one.begin, one.size, tuple(start + place for place in one.places))
        for archive, start in sorted(starts, key=lambda pair: pair[1])
        for one in _summed(archive, read_directory(archive), _within(replaced, archive))
    ]
    return Frame(copied, summed=summed)


def can_be_marked(file: InputFile) -> bool:
    """Return whether a file has a place for our mark."""
    return file.path.name.lower().endswith(".safetensors") or is_zip(file)


def _safetensors(file: InputFile, mark: bytes) -> Frame:
    begin = 8 + int.from_bytes(file.read(0, 8), "little")
    header = json.loads(file.read(8, begin - 8))
    metadata = {**(header.pop("__metadata__", None) or {}), METADATA_KEY: mark.decode()}
    text = json.dumps({"__metadata__": metadata, **header}, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return Frame([Copied(begin, file.size, len(head) - begin)], [(0, head)])


def _torch_zip(file: InputFile, replaced: Sequence[Span], mark: bytes) -> Frame:
    """Return the frame of an archive: its records where they are, our mark behind them, and its directory."""
    start, size, count = locate_directory(file)
    entries = read_directory(file)
    folder = _folder(entries)
    record = ZipRecord(f"{folder}/{RECORD}", len(mark), start)
    ours, entry = whole_record(record, mark)
    directory = file.read(start, size) + entry
    tail = ours + directory + directory_end(start + len(ours), len(directory), count + 1)
    summed = [
        Summed(one.begin, one.size, tuple(place + len(ours) * (place >= start) for place in one.places))
        for one in _summed(file, entries, replaced)
    ]
    return Frame([Copied(0, start)], [(start, tail)], summed)


def _cut_zip(file: InputFile, replaced: Sequence[Span], mark: bytes, cut: Cut) -> Frame:
    """Return the frame of an archive without some of its storages: records placed anew, with our mark behind them."""
    entries = sorted(read_directory(file).values(), key=lambda entry: entry.header_offset)
    folder = _folder(entry.name for entry in entries)
    storages = f"{folder}/data/"
    entries = [
        entry
        for entry in entries
        if not entry.name.startswith(storages) or entry.name.removeprefix(storages) in cut.storages
    ]
    copied, texts, changed, listed, gap = [], list[tuple[int, bytes]](), [], list[bytes](), b""
    at = 0
    for entry, begin in zip(entries, data_offsets(file, entries), strict=True):
        description = cut.description if entry.name == f"{folder}/data.pkl" else None
        record = ZipRecord(entry.name, entry.size if description is None else len(description), at)
        checksum = entry.checksum if description is None else zlib.crc32(description)
        texts.append((at - len(gap), gap + record.header + (description or b"")))
        if description is None:
            copied.append(Copied(begin, begin + entry.size, record.begin - begin))
        if _is_within(replaced, entry):
            changed.append((record, sum(map(len, listed))))
        gap, at = record.descriptor(checksum), record.end
        listed.append(record.entry(checksum))
    ours, own_entry = whole_record(ZipRecord(f"{folder}/{RECORD}", len(mark), at), mark)
    directory = b"".join([*listed, own_entry])
    end = at + len(ours)
    texts.append((at - len(gap), gap + ours + directory + directory_end(end, len(directory), len(listed) + 1)))
    summed = [
        Summed(record.begin, record.size, (record.begin + record.size + 4, end + before + CENTRAL_CHECKSUM))
        for record, before in changed
    ]
    return Frame(copied, texts, summed)


def _folder(names: Iterable[str]) -> str:
    """Return the folder in an archive of torch's, whose opening made sure that there is one."""
    return next(name for name in names if is_description(name)).partition("/")[0]


def _summed(archive: ByteSource, directory: ZipDirectory, replaced: Sequence[Span]) -> Iterator[Summed]:
    """Yield the records of an archive that hold some of the ranges, in its own bytes."""
    changed = [entry for entry in directory.values() if _is_within(replaced, entry)]
    changed.sort(key=lambda entry: entry.header_offset)
    for entry, (start, places) in zip(changed, checksum_places(archive, changed), strict=True):
        yield Summed(start, entry.size, places)


def _is_within(replaced: Sequence[Span], entry: ZipEntry) -> bool:
    """Return whether some of the ranges lie in a record."""
    first = bisect_left(replaced, (entry.header_offset, 0))
    return first < len(replaced) and replaced[first][0] < entry.end


def _within(replaced: Sequence[Span], archive: FileRegion) -> list[Span]:
    first = bisect_left(replaced, (archive.start, 0))
    last = bisect_left(replaced, (archive.start + archive.size, 0))
    return [(begin - archive.start, end - archive.start) for begin, end in replaced[first:last]]


def join_spans(spans: Iterable[Span]) -> list[Span]:
    """Return the ranges in order, those that touch or overlap joined."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined
