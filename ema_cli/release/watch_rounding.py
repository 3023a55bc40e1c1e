"""How far an average that was brought up to date checkpoint by checkpoint may be from one of all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.folding.kernel.floats import decode

_ROUNDINGS = 4  # in one update, or term of a sum: of a difference, of two products, and of the sum


@dataclass(frozen=True, slots=True)
class WatchRounding:
    """The rounding of an average that `watch` kept.

    After checkpoint k what float32 rounds off is kept, in bfloat16, to 2 ** -33 of the average's size there, which is
    no larger than the largest of the values that entered; a float64 is rounded to 2 ** -53. Of that error the average
    has the share of all up to k, the sum of their weights. The average that is made anew is a sum in float32, or in
    float64, of as many terms. Both are rounded at last as they are written.

    Attributes:
        checkpoints: those that entered.
        updates: the sum of these shares.
    """

    checkpoints: Sequence[Checkpoint]
    updates: float

    @classmethod
    def of(cls, checkpoints: Sequence[Checkpoint], weights: Sequence[float]) -> WatchRounding:
        """Return the rounding of an average of checkpoints, oldest first, with these weights."""
        entering = [checkpoint for checkpoint, weight in zip(checkpoints, weights, strict=True) if weight]
        return cls(entering, sum(map(abs, accumulate(weights))))

    def explains(self, dtype: DType, name: str, start: int, there: bytes | bytearray, wanted: bytes) -> bool:
        """Return whether rounding alone can make `wanted` to `there`.

        Args:
            dtype: that of both.
            name: the tensor's, in the checkpoints.
            start: the first byte, in the average.
            there, wanted: bytes of whole elements.
        """
        if not dtype.averaged:
            return False
        ours, theirs = _values(dtype, there), _values(dtype, wanted)
        first, count = start * 8 // dtype.bits, len(there) * 8 // dtype.bits
        largest = np.zeros_like(theirs)
        for checkpoint in self.checkpoints:
            stored_as = checkpoint.tensors.specs[name].dtype
            stored = bytearray(stored_as.nbytes(count))
            checkpoint.tensors.read_into(name, stored_as.nbytes(first), memoryview(stored))
            np.maximum(largest, np.abs(_values(stored_as, stored)), out=largest)
        mantissa = dtype.component_bits - 1 - dtype.exponent_bits
        step = np.maximum(np.abs(theirs), np.abs(ours)) * 2.0**-mantissa + 2.0 ** (
            2 - 2 ** (dtype.exponent_bits - 1) - mantissa
        )
        summed, kept = (2.0**-53, 2.0**-53) if dtype.component_bits == 64 else (2.0**-24, 2.0**-33)
        rounding = _ROUNDINGS * (self.updates * kept + (len(self.checkpoints) + 1) * summed)
        with np.errstate(invalid="ignore"):  # an infinity less another
            near = np.abs(ours - theirs) <= step + rounding * largest
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        return bool(np.all(same | (near & np.isfinite(ours) & np.isfinite(theirs))))


def _values(dtype: DType, stored: bytes | bytearray) -> NDArray[np.float64]:
    """Return stored elements as numbers, two for each complex one."""
    raw = np.frombuffer(stored, np.uint8)
    values = np.empty(len(raw) // dtype.itemsize * dtype.components)
    decode(dtype, raw, values)
    return values
