"""Byte ranges that are joined."""

from __future__ import annotations

import random
from pathlib import Path

from ema_cli.storage.names import StorePath
from ema_cli.storage.ranges import join_ranges, read_ranges
from tests.formats.pickles.pickled import Memory


def test_neighbours_in_one_file_become_one_range():
    """A range is joined to the one before only where it begins in the same file at that one's end."""
    ranges = [("a", 0, 8), ("a", 8, 4), ("a", 16, 4), ("b", 20, 4), ("b", 24, 0), ("b", 24, 2), ("a", 20, 1)]
    assert list(join_ranges(ranges)) == [("a", 0, 12), ("a", 16, 4), ("b", 20, 6), ("a", 20, 1)]
    assert list(join_ranges([])) == []


class Counted(Memory):
    """Bytes in memory that note what is read of them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes, and note the read."""
        self.reads.append((offset, size))
        return super().read(offset, size)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out`, and note the read."""
        self.reads.append((offset, len(out)))
        out[:] = super().read(offset, len(out))


def test_small_ranges_near_each_other_come_with_one_read():
    """Large ones, those behind a large gap, and those that lie before the last are read by themselves."""
    ranges = [(0, 10), (100, 20), (200, 30_000), (30_300, 8), (30_400, 8), (60_000, 5), (70, 5)]
    data = random.Random(0).randbytes(70_000)
    source = Counted(data)
    out = bytearray(sum(size for _, size in ranges))
    read_ranges([(source, *place) for place in ranges], memoryview(out))
    assert out == b"".join(data[offset : offset + size] for offset, size in ranges)
    assert source.reads == [(0, 120), (200, 30_000), (30_300, 108), (60_000, 5), (70, 5)]


def test_in_a_store_wider_gaps_cost_less_than_a_request():
    """Half a MiB is read over, in reads of at most 2 MiB; on a disk a read by itself costs less."""
    kib = 1 << 10
    places = [(0, 10), (500 * kib, 10), (900 * kib, 10), (1500 * kib, 10), (1900 * kib, 10), (2300 * kib, 10)]
    data = random.Random(0).randbytes(2400 * kib)
    for path, reads in [
        (StorePath("s3://bucket/x"), [(0, 900 * kib + 10), (1500 * kib, 800 * kib + 10)]),
        (Path("x"), places),
    ]:
        source, out = Counted(data), bytearray(60)
        source.path = path
        read_ranges([(source, *place) for place in places], memoryview(out))
        assert out == b"".join(data[offset : offset + size] for offset, size in places)
        assert sorted(source.reads) == reads


def test_any_ranges_are_read_as_they_are():
    """In any order, in one source or several, overlapping or empty: the bytes are those of each, one after another."""
    draw = random.Random(1)
    sources = [Memory(draw.randbytes(200_000)) for _ in range(2)]
    for _ in range(50):
        ranges = [
            (draw.choice(sources), draw.randrange(100_000), draw.choice([0, 1, 40, 9000]))
            for _ in range(draw.randrange(30))
        ]
        ranges = sorted(ranges, key=lambda place: place[1]) if draw.random() < 0.7 else ranges
        out = bytearray(sum(size for *_, size in ranges))
        read_ranges(ranges, memoryview(out))
        assert out == b"".join(source.read(offset, size) for source, offset, size in ranges)
