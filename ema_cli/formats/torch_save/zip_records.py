"""The checksums that torch's zip archives have of their records. Headers alone: nothing is summed up here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

from ema_cli.checkpoint import StoredRecord
from ema_cli.formats.torch_save.zip_directory import data_offset, read_directory
from ema_cli.storage.source import ByteSource

_ZIP = b"PK\x03\x04"


def records_at(source: ByteSource, offsets: Mapping[str, int]) -> Iterator[StoredRecord]:
    """Yield each record of an archive in which a tensor begins, once; nothing for a file that is no archive.

    Args:
        source: the archive.
        offsets: the byte of the archive at which each tensor begins.

    Raises:
        CheckpointError: where the archive cannot be read.
    """
    if source.size < len(_ZIP) or source.read(0, len(_ZIP)) != _ZIP:
        return
    entries = sorted(read_directory(source).values(), key=lambda entry: entry.header_offset)
    starts = [entry.header_offset for entry in entries]
    known: set[int] = set()
    for name, offset in offsets.items():
        number = bisect_right(starts, offset) - 1
        if number in known or not entries[number].size:
            continue
        known.add(number)
        entry = entries[number]
        yield StoredRecord(name, source, data_offset(source, entry), entry.size, entry.checksum)
