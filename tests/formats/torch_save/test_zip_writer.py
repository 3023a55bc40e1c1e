"""The records of an archive lie where torch's own writer puts them, also beyond four gigabytes."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.formats.torch_save.zip_writer import ALIGNMENT, ZipRecord, directory_end, place_records, whole_record

FOUR_GIB = 1 << 32


def archive(contents: dict[str, bytes]) -> bytes:
    """Return an archive of these records."""
    placed = place_records([(name, len(content)) for name, content in contents.items()], 0)
    parts = [whole_record(record, contents[record.name]) for record in placed]
    data, entries = b"".join(whole for whole, _ in parts), b"".join(entry for _, entry in parts)
    return data + entries + directory_end(len(data), len(entries), len(parts))


@given(st.dictionaries(st.text("abc/.0", min_size=1, max_size=90), st.binary(max_size=300), max_size=8))
def test_records_read_back_with_pythons_reader(contents: dict[str, bytes]):
    """Any records, empty ones too, come back from Python's reader, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(archive(contents))) as found:
        assert {name: found.read(name) for name in found.namelist()} == contents
        assert found.testzip() is None


@pytest.mark.parametrize("sizes", [[1, 0, 5], [64, 63, 65, 0, 0, 1000], [10] * 200])
def test_bytes_begin_where_torch_puts_them(sizes: list[int]):
    """From the first record on, each header and each record's bytes stand where torch's writer has them."""
    out = io.BytesIO()
    torch.save([torch.zeros(size, dtype=torch.uint8) for size in sizes], out)
    reader = torch._C.PyTorchFileReader(io.BytesIO(out.getvalue()))
    at = reader.get_record_header_offset("data/0")
    placed = list(place_records([(f"archive/data/{number}", size) for number, size in enumerate(sizes)], at))
    for number, record in enumerate(placed):
        assert record.at == reader.get_record_header_offset(f"data/{number}")
        assert record.begin == reader.get_record_offset(f"data/{number}")
        assert record.begin % ALIGNMENT == 0


@pytest.mark.parametrize("size", [0, 1, FOUR_GIB - 2, FOUR_GIB - 1, FOUR_GIB, 1 << 45])
@pytest.mark.parametrize("at", [0, FOUR_GIB - 2, FOUR_GIB - 1, FOUR_GIB, 1 << 50])
def test_large_numbers_stand_in_64_bits(size: int, at: int):
    """Where torch computes a place from sizes, it comes to ours; the directory gives size and place as they are."""
    out = io.BytesIO()
    torch.save(torch.zeros(1), out)
    reader = torch._C.PyTorchFileReader(io.BytesIO(out.getvalue()))
    record = ZipRecord("archive/data/7", size, at)
    assert record.begin == reader.get_record_offset_no_read(at, "data/7", size, ALIGNMENT)
    assert len(record.header) == record.begin - at
    assert record.end == record.begin + size + len(record.descriptor(7))
    assert len(record.entry(7)) == record.entry_size
    entries = record.entry(7)
    end = directory_end(0, len(entries), 1)
    # The directory alone: Python's reader looks at nothing else until a record is read.
    (found,) = zipfile.ZipFile(io.BytesIO(entries + end)).infolist()
    assert (found.filename, found.file_size, found.compress_size) == ("archive/data/7", size, size)
    assert (found.header_offset, found.CRC) == (at, 7)


def test_a_descriptor_tells_checksum_and_size():
    """Behind the bytes stand their checksum and twice their size, as wide as the record needs."""
    assert ZipRecord("a", 5, 0).descriptor(9) == struct.pack("<4s3L", b"PK\x07\x08", 9, 5, 5)
    assert ZipRecord("a", 5, FOUR_GIB).descriptor(9) == struct.pack("<4sL2Q", b"PK\x07\x08", 9, 5, 5)
    assert ZipRecord("a", 0, 0).descriptor(zlib.crc32(b"")) == b""


@pytest.mark.slow
def test_more_entries_than_sixteen_bits_count():
    """An archive of seventy thousand records is whole, by Python's reader."""
    names = [f"a/{number}" for number in range(70_000)]
    with zipfile.ZipFile(io.BytesIO(archive(dict.fromkeys(names, b"x")))) as found:
        assert found.namelist() == names
