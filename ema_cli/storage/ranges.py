"""Byte ranges of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from ema_cli.storage.names import StorePath
from ema_cli.storage.source import ByteSource
from ema_cli.system.threads import reading_pool

# To copy so many bytes takes less time than another read; and the most that are read to be copied: malloc takes more
# from the system each time.
_NEAR = 1 << 13, 1 << 16
NARROW_BYTES = 1 << 19
"""A gap in an object that is read over: a request takes as long as so many bytes."""

_NEAR_IN_STORE = NARROW_BYTES, 1 << 21
_AT_ONCE = 16

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
    groups, position = list[tuple[list[tuple[ByteSource, int, int]], memoryview]](), 0
    for group in near_ranges(ranges):
        size = sum(size for _, _, size in group)
        part = out[position : position + size]
        position += size
        if isinstance(group[0][0].path, StorePath):
            groups.append((group, part))
        else:
            _read_group(group, part)
    if len(groups) > 1:
        with reading_pool(min(len(groups), _AT_ONCE), "read") as pool:
            list(pool.map(_read_group, *zip(*groups, strict=True)))
    elif groups:
        _read_group(*groups[0])


def read_each(source: ByteSource, spans: Sequence[tuple[int, int]]) -> bytes:
    """Return the bytes of ranges of a source, first byte and size of each, one after another."""
    if isinstance(source.path, StorePath):
        out = bytearray(sum(size for _, size in spans))
        read_ranges(((source, offset, size) for offset, size in spans), memoryview(out))
        return bytes(out)
    return b"".join([source.read(offset, size) for offset, size in spans])


def _read_group(group: list[tuple[ByteSource, int, int]], out: memoryview) -> None:
    source, begin, size = group[0]
    if len(group) == 1:
        source.read_into(begin, out)
        return
    data = memoryview(source.read(begin, group[-1][1] + group[-1][2] - begin))
    position = 0
    for _, offset, size in group:
        out[position : position + size] = data[offset - begin : offset - begin + size]
        position += size


def near_ranges(ranges: Iterable[tuple[ByteSource, int, int]]) -> Iterator[list[tuple[ByteSource, int, int]]]:
    """Yield the ranges in groups, each of them small ones near each other in one file, or a single one."""
    group: list[tuple[ByteSource, int, int]] = []
    end = most = 0  # of the group: where it ends, and where it must
    near, longest = _NEAR
    owner: ByteSource | None = None
    for current in ranges:
        source, offset, size = current
        if source is owner and end <= offset and offset + size <= min(end + near, most):
            group.append(current)
        else:
            if group:
                yield group
            if source is not owner:
                near, longest = _NEAR_IN_STORE if isinstance(source.path, StorePath) else _NEAR
            group, owner = [current], source
            most = offset + (longest if size <= near else 0)
        end = offset + size
    if group:
        yield group
