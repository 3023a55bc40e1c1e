"""What stands around the tensors of a file when it is written over again, for each container: with our mark, if it can.

torch zip: a record of ours behind all others, and the checksums of those with tensors. safetensors: our key in the
header's metadata. Files of torch's old format, and shards of torch.distributed.checkpoint, have no place for a mark.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from ema_cli.formats.copies.copied_file import Frame, Span, Summed
from ema_cli.formats.mark import METADATA_KEY, RECORD
from ema_cli.formats.torch_save.file import is_zip
from ema_cli.formats.torch_save.zip_directory import data_offset, locate_directory, read_directory
from ema_cli.formats.torch_save.zip_writer import ZipRecord, directory_end, whole_record
from ema_cli.storage.source import ByteSource, FileRegion, InputFile


def frame_of(file: InputFile, replaced: Sequence[Span], archives: Iterable[FileRegion], mark: bytes) -> Frame:
    """Return what stands around the tensors of `file`.

    Args:
        file: the original.
        replaced: the ranges of it that are replaced, in order.
        archives: archives of torch's within it, in which some of them lie.
        mark: the content of our mark.
    """
    if file.path.name.lower().endswith(".safetensors"):
        return _safetensors(file, mark)
    archives = list(archives)
    if is_zip(file) and not archives:
        return _torch_zip(file, replaced, mark)
    summed = [
        Summed(archive.start + one.begin, one.size, tuple(archive.start + place for place in one.places))
        for archive in archives
        for one in _summed(archive, _within(replaced, archive))
    ]
    return Frame((0, file.size), summed=summed)


def can_be_marked(file: InputFile) -> bool:
    """Return whether a file has a place for our mark."""
    return file.path.name.lower().endswith(".safetensors") or is_zip(file)


def _safetensors(file: InputFile, mark: bytes) -> Frame:
    begin = 8 + int.from_bytes(file.read(0, 8), "little")
    header = json.loads(file.read(8, begin - 8))
    metadata = {**(header.pop("__metadata__", None) or {}), METADATA_KEY: mark.decode()}
    text = json.dumps({"__metadata__": metadata, **header}, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    return Frame((begin, file.size), head=len(text).to_bytes(8, "little") + text)


def _torch_zip(file: InputFile, replaced: Sequence[Span], mark: bytes) -> Frame:
    """Return the frame of an archive: its records where they are, our mark behind them, and its directory."""
    start, size, count = locate_directory(file)
    entries = read_directory(file)
    (folder,) = {name.partition("/")[0] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1}
    record = ZipRecord(f"{folder}/{RECORD}", len(mark), start)
    ours, entry = whole_record(record, mark)
    directory = file.read(start, size) + entry
    tail = ours + directory + directory_end(start + len(ours), len(directory), count + 1)
    summed = [
        Summed(one.begin, one.size, tuple(place + len(ours) * (place >= start) for place in one.places))
        for one in _summed(file, replaced)
    ]
    return Frame((0, start), tail=tail, summed=summed)


def _summed(archive: ByteSource, replaced: Sequence[Span]) -> Iterator[Summed]:
    """Yield the records of an archive that hold some of the ranges, in its own bytes."""
    begins = [begin for begin, _ in replaced]
    for entry in read_directory(archive).values():
        first = bisect_left(begins, entry.header_offset)
        if first < len(begins) and begins[first] < entry.end:
            yield Summed(data_offset(archive, entry), entry.size, tuple(entry.checksum_places(archive)))


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
