"""The callback by which a long task reports its progress."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int], None]  # called now and then, with the bytes done so far and the total


def no_progress(done: int, total: int) -> None:
    """Ignore the progress: the default of each task that reports it."""


def part_of(progress: ProgressCallback, before: int, total: int) -> ProgressCallback:
    """Return what a part of the work reports to, which comes after `before` bytes of `total` in all."""
    return lambda done, _: progress(before + done, total)
