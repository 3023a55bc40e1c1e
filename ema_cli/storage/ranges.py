"""Byte ranges of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ema_cli.storage.source import ByteSource

_NEAR_BYTES = 1 << 13  # to copy so many takes less time than another read
_MOST_BYTES = 1 << 16  # that are read to be copied: malloc takes more from the system each time

Owner = TypeVar("Owner")


def join_ranges(ranges: Iterable[tuple[Owner, int, int]]) -> Iterator[tuple[Owner, int, int]]:
    """Make one range of neighbours, so that they are read or written at once.

    Each range is (file, first byte, size). (a, 0, 8), (a, 8, 4), (a, 16, 4), (b, 20, 4) become (a, 0, 12), (a, 16, 4),
    (b, 20, 4): order is kept, and only a range that begins where the one before ends is joined to it.
    """
    current: tuple[Owner, int, int] | None = None
    for owner, offset, size in ranges:
        if current is not None and current[0] is owner and current[1] + current[2] == offset:
            current = (owner, current[1], current[2] + size)
            continue
        if current is not None:
            yield current
        current = (owner, offset, size)
    if current is not None:
        yield current


def read_ranges(ranges: Iterable[tuple[ByteSource, int, int]], out: memoryview) -> None:
    """Fill `out` with the bytes of the ranges, one after another. Small ones near each other come with one read."""
    position = 0
    for group in _near_ranges(ranges):
        source, begin, size = group[0]
        if len(group) == 1:
            source.read_into(begin, out[position : position + size])
            position += size
            continue
        data = memoryview(source.read(begin, group[-1][1] + group[-1][2] - begin))
        for _, offset, size in group:
            out[position : position + size] = data[offset - begin : offset - begin + size]
            position += size


def _near_ranges(ranges: Iterable[tuple[Owner, int, int]]) -> Iterator[list[tuple[Owner, int, int]]]:
    """Yield the ranges in groups, each of them small ones near each other in one file, or a single one."""
    group: list[tuple[Owner, int, int]] = []
    end = most = 0  # of the group: where it ends, and where it must
    owner: Owner | None = None
    for current in ranges:
        _, offset, size = current
        if current[0] is owner and end <= offset and offset + size <= min(end + _NEAR_BYTES, most):
            group.append(current)
        else:
            if group:
                yield group
            group, owner = [current], current[0]
            most = offset + (_MOST_BYTES if size <= _NEAR_BYTES else 0)
        end = offset + size
    if group:
        yield group
