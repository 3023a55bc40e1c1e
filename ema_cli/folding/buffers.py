"""The memory of a fold: how much, how it is divided, and each thread's share of it."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.folding.kernel.numpy_kernel import Floats

DEFAULT_BYTES = 64 << 20
_ROW_BYTES = 1 << 20  # smaller ones spend more time in calls, larger ones leave the cache
_ROWS = 4
_LEAST_ROWS = 2
_LEAST_ROW_BYTES = 1 << 16  # for 64 KiB of a row even a thread of many is worth its calls
_MOST_WORKERS = 64
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """How many threads fold, `most_workers` where the disk is slow, and what each has: `rows` of `row_bytes`.

    A row is one block of one checkpoint, in the type that it is accumulated in; `rows` of them are added at once.
    None of it shows in the output.
    """

    threads: int = 1
    most_workers: int = 1
    rows: int = _ROWS
    row_bytes: int = _ROW_BYTES

    def worker_bytes(self, averages: int = 1, newest: int = 1) -> int:
        """Return the memory of one thread, for so many averages with so many different newest checkpoints."""
        spare = self.rows + 1 if newest > 1 else 0
        scratch = 1
        # Of the rows as stored only those are apart that are accumulated in a wider type: half as long at most.
        return self.row_bytes * (self.rows + 1 + spare + averages + newest + scratch) + self.rows * self.row_bytes // 2


def least_bytes(averages: int = 1, newest: int = 1) -> int:
    """Return the memory of one thread with the smallest buffers."""
    return BufferSizes(rows=_LEAST_ROWS, row_bytes=_LEAST_ROW_BYTES).worker_bytes(averages, newest)


def divide_memory(nbytes: int, threads: int, averages: int = 1, newest: int = 1) -> BufferSizes:
    """Return sizes that keep `threads` at work within `nbytes`, with more threads for a slow disk where they fit.

    Fewer threads where they do not; `nbytes` are at least `least_bytes`.
    """
    least = least_bytes(averages, newest)
    assert nbytes >= least, "checked by the caller, who knows what the user asked for"
    sizes = BufferSizes(min(threads, nbytes // least))
    while sizes.threads * sizes.worker_bytes(averages, newest) > nbytes:
        if sizes.rows > _LEAST_ROWS:
            sizes = replace(sizes, rows=sizes.rows // 2)
        else:
            sizes = replace(sizes, row_bytes=sizes.row_bytes // 2)
    most = min(nbytes // sizes.worker_bytes(averages, newest), _MOST_WORKERS)
    return replace(sizes, most_workers=max(most, sizes.threads))


class Buffers:
    """One thread's memory, allocated once."""

    def __init__(self, sizes: BufferSizes, averages: int, newest: int) -> None:
        def rows(number: int, nbytes: int = sizes.row_bytes) -> NDArray[np.uint8]:
            # Mapped, so that the system has it back as soon as nobody uses it: malloc may keep what a thread freed.
            try:
                mapped = mmap.mmap(-1, number * nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                raise MemoryError(str(error)) from error
            return np.frombuffer(mapped, dtype=np.uint8).reshape(number, nbytes)

        self._stored = rows(sizes.rows, sizes.row_bytes // 2)
        self._rows = rows(sizes.rows + 1)
        self._spare = rows(sizes.rows + 1) if newest > 1 else None
        self._sums = rows(averages)
        self._newest = rows(newest)
        self._scratch = rows(1)
        self._last: tuple[np.dtype[Any], int] | None = None
        self._views: Views

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """Return `count` bytes, at most a row."""
        return self._rows[0, :count]

    def views(self, work: np.dtype[Any], count: int) -> Views:
        """Return the buffers as they serve rows of `count` floats of type `work`."""
        if self._last == (work, count):
            return self._views
        # A whole number of 64 bytes: pairs are not cut, and no row is so short that numpy would add along it.
        width = -(-count * work.itemsize // _ALIGNMENT) * _ALIGNMENT

        def floats(rows: NDArray[np.uint8]) -> Floats:
            return rows[:, :width].view(work)

        rows = floats(self._rows)
        self._last = (work, count)
        self._views = Views(
            count,
            rows,
            [row[:count].data.cast("B") for row in rows[1:]],
            floats(self._spare) if self._spare is not None else None,
            self._stored[:, : width // 2],
            floats(self._sums),
            floats(self._newest),
            floats(self._scratch)[0],
        )
        return self._views


@dataclass(frozen=True, slots=True)
class Views:
    """Buffers for rows of `count` floats, and a few more that pad each to n.

    `rows` [K + 1, n]: checkpoints, after one row for the sum so far; `row_bytes`: where what is stored as such floats
    is read to. `spare`: as `rows`; None where all averages have one newest checkpoint. `stored` [K, n/2 floats]: bytes
    of what is stored in a narrower type. `sums` and `newest`: a row for each average, and for each newest checkpoint.
    `scratch` [n]: for rounding.
    """

    count: int
    rows: Floats
    row_bytes: list[memoryview]
    spare: Floats | None
    stored: NDArray[np.uint8]
    sums: Floats
    newest: Floats
    scratch: Floats
