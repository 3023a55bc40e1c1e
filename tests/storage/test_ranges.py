"""Byte ranges that are joined."""

from __future__ import annotations

from ema_cli.storage.ranges import join_ranges


def test_neighbours_in_one_file_become_one_range():
    """A range is joined to the one before only where it begins in the same file at that one's end."""
    ranges = [("a", 0, 8), ("a", 8, 4), ("a", 16, 4), ("b", 20, 4), ("b", 24, 0), ("b", 24, 2), ("a", 20, 1)]
    assert list(join_ranges(ranges)) == [("a", 0, 12), ("a", 16, 4), ("b", 20, 6), ("a", 20, 1)]
    assert list(join_ranges([])) == []
