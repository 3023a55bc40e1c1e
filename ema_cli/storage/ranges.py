"""Byte ranges of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

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
