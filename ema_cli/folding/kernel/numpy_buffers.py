"""The memory of one thread, as arrays of numpy."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.dataclass import dataclass
from ema_cli.folding.kernel import WorkspaceSize
from ema_cli.folding.kernel.floats import Floats

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Views:
    """The buffers as rows of `count` floats, and a few more that pad each row to n.

    Attributes:
        rows: checkpoints, after one row for the sum so far, [K + 1, n].
        row_bytes: of each row but the first, the memory of its `count` floats: numbers stored as such are read to it.
        spare: as `rows`, [K + 1, n]; None where all averages have one newest checkpoint.
        stored: the bytes of numbers that are stored in a narrower type, [K, n/2 floats].
        sums: the sums, [averages, n].
        newest: the values of each newest checkpoint, [bases, n].
        scratch: for rounding, [n].
    """

    count: int
    rows: Floats
    row_bytes: list[memoryview]
    spare: Floats | None
    stored: NDArray[np.uint8]
    sums: Floats
    newest: Floats
    scratch: Floats


class Buffers:
    """One thread's memory, allocated once."""

    def __init__(self, size: WorkspaceSize) -> None:
        self._stored = _rows(size.rows, size.row_bytes // 2)
        self._rows = _rows(size.rows + 1, size.row_bytes)
        self._spare = _rows(size.rows + 1, size.row_bytes) if size.bases > 1 else None
        self._sums = _rows(size.averages, size.row_bytes)
        self._newest = _rows(size.bases, size.row_bytes)
        self._scratch = _rows(1, size.row_bytes)
        self._last: tuple[np.dtype[Any], int] | None = None
        self._views: Views

    @staticmethod
    def nbytes(size: WorkspaceSize) -> int:
        """Return the memory of buffers of this size."""
        spare = size.rows + 1 if size.bases > 1 else 0
        scratch = 1
        rows = size.rows + 1 + spare + size.averages + size.bases + scratch
        # Rows as stored are apart only where they are summed up in a wider type: half as long at most.
        return size.row_bytes * rows + size.rows * size.row_bytes // 2

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """Return `count` bytes, at most a row."""
        return self._rows[0, :count]

    def views(self, floats: np.dtype[Any], count: int) -> Views:
        """Return the buffers as rows of `count` floats of type `floats`."""
        if self._last == (floats, count):
            return self._views
        # A whole number of 64 bytes: pairs are not cut, and no row is so short that numpy would add along it.
        width = -(-count * floats.itemsize // _ALIGNMENT) * _ALIGNMENT

        def view(rows: NDArray[np.uint8]) -> Floats:
            return rows[:, :width].view(floats)

        rows = view(self._rows)
        self._last = (floats, count)
        self._views = Views(
            count=count,
            rows=rows,
            row_bytes=[row[:count].data.cast("B") for row in rows[1:]],
            spare=view(self._spare) if self._spare is not None else None,
            stored=self._stored[:, : width // 2],
            sums=view(self._sums),
            newest=view(self._newest),
            scratch=view(self._scratch)[0],
        )
        return self._views


def _rows(number: int, nbytes: int) -> NDArray[np.uint8]:
    """Return new rows of bytes, [number, nbytes]."""
    # Mapped, so that the system has it back as soon as nobody uses it: malloc may keep what a thread freed.
    try:
        mapped = mmap.mmap(-1, number * nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error
    return np.frombuffer(mapped, dtype=np.uint8).reshape(number, nbytes)
