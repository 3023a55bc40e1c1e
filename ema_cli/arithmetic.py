"""From stored bytes to floats and back, and the average of one range. The only arithmetic on tensors.

Reproducible to the bit on every x86 processor: subtract, multiply and add stay separate ufuncs (a fused
multiply-add rounds differently, and so does a sum whose order depends on the machine), and each element is
computed alone, so that the size of a range does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import DType

Floats = NDArray[np.floating[Any]]

# A magnitude from which on rounding to the dtype gives infinity: half a step above its largest number.
_OVERFLOW = {
    "F64": np.inf,
    "F32": (2 - 2.0**-24) * 2.0**127,
    "C64": (2 - 2.0**-24) * 2.0**127,
    "C128": np.inf,
    "BF16": (2 - 2.0**-8) * 2.0**127,
    "F16": 65520.0,
}
_STORED = {"F64": "<f8", "C128": "<f8", "F32": "<f4", "C64": "<f4", "F16": "<f2"}  # numpy's name; it has no BF16


def work_dtype(dtypes: Sequence[DType]) -> np.dtype[Any]:
    """Return the float type in which tensors of `dtypes` are accumulated: float64 where one has that, else float32."""
    wide = any(dtype.name in ("F64", "C128") for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def is_stored_as(dtype: DType, work: np.dtype[Any]) -> bool:
    """Return whether numbers of `dtype` are stored as arrays of `work` hold them."""
    return {"F64": "float64", "C128": "float64", "F32": "float32", "C64": "float32"}.get(dtype.name) == work.name


def components(dtype: DType) -> int:
    """Return how many real numbers make one element: a complex one is averaged part by part."""
    return 2 if dtype.kind == "complex" else 1


def overflow_limit(dtype: DType, work: np.dtype[Any]) -> float:
    """Return the magnitude from which on a number of type `work` becomes infinite when rounded to `dtype`."""
    limit = _OVERFLOW[dtype.name]
    return np.inf if limit > np.finfo(work).max else limit


def decode(dtype: DType, raw: NDArray[np.uint8], out: Floats) -> None:
    """Convert stored numbers to `out`, exactly."""
    if dtype.name != "BF16":
        np.copyto(out, raw.view(_STORED[dtype.name]))
    elif out.dtype == np.float64:
        np.copyto(out, (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32))
    else:
        bits = out.view(np.uint32)
        np.copyto(bits, raw.view("<u2"))
        np.left_shift(bits, 16, out=bits)


def encode(dtype: DType, values: Floats) -> memoryview:
    """Round `values` once, to nearest and ties to even, and return the bytes to store."""
    if dtype.name == "BF16":
        return _round_to_bf16(values).data.cast("B")
    return np.ascontiguousarray(values, dtype=_STORED[dtype.name]).data.cast("B")


def _round_to_bf16(values: Floats) -> NDArray[np.uint16]:
    if values.dtype == np.float64:
        values = _round_to_odd(values)
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    nan = np.isnan(values)
    if nan.any():
        # Rounding could carry a NaN over into a number; keep sign and upper payload, and make it quiet.
        rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x40)
    return rounded.astype("<u2")


def _round_to_odd(values: Floats) -> NDArray[np.float32]:
    """Round float64 to float32 so that a second rounding, to fewer bits, gives what one rounding would."""
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    bits -= (np.abs(back) > np.abs(values)).astype(np.uint32)
    bits |= (back != values).astype(np.uint32)
    return nearest


def weighted_average(
    load: Callable[[int, Floats], None], weights: Sequence[float], buffers: tuple[Floats, Floats, Floats]
) -> Floats:
    """Return the average of one range over all checkpoints; the last weight is implied by the sum 1.

    `load(k, out)` fills `out` with the range from checkpoint k, oldest first. The average is written as
    newest + sum w_k (x_k - newest): where all are equal it is exactly that value, and for neighbours, which
    checkpoints are, the difference is exact, so that little is lost. Not finite where an input or a difference
    is not: see `settle_non_finite`.
    """
    newest, total, other = buffers
    load(len(weights) - 1, newest)
    total.fill(0)
    for number, weight in enumerate(weights[:-1]):
        load(number, other)
        np.subtract(other, newest, out=other)
        np.multiply(other, other.dtype.type(weight), out=other)
        np.add(total, other, out=total)
    unmoved = total == 0
    np.add(newest, total, out=total)
    # -0.0 + 0.0 is 0.0: what did not move keeps its very bits.
    np.copyto(total, newest, where=unmoved)
    return total


def is_within(values: Floats, limit: float) -> bool:
    """Return whether all values are finite, and below `limit` in magnitude."""
    return len(values) == 0 or bool(values.min() > -limit and values.max() < limit)


def settle_non_finite(
    load: Callable[[int, Floats], None], weights: Sequence[float], average: Floats, limit: float
) -> tuple[int, int] | None:
    """Mend in `average` what only looked non-finite; return where it truly is: (checkpoint, element).

    Mended are infinities that are equal in all checkpoints (an attention mask), and differences that overflowed
    although the average does not. The checkpoint is -1 where only the average is too large for its dtype. With
    several such elements the first is returned; all hold their IEEE value afterwards.
    """
    wrong = np.flatnonzero(~(np.abs(average) < limit))
    values = np.empty((len(weights), len(wrong)), dtype=np.float64)
    column = np.empty_like(average)
    for number in range(len(weights)):
        load(number, column)
        values[number] = column[wrong]
    exact = np.zeros(len(wrong))
    for weight, row in zip(weights, values, strict=True):
        exact += weight * row
    same = np.all(values == values[-1], axis=0)
    exact[same] = values[-1][same]
    average[wrong] = exact.astype(average.dtype)
    still = ~same & ~(np.abs(average[wrong]) < limit)
    # Finite and equal everywhere, but too large for a narrower output.
    still |= same & np.isfinite(values[-1]) & ~(np.abs(average[wrong]) < limit)
    if not still.any():
        return None
    first = int(np.flatnonzero(still)[0])
    culprits = np.flatnonzero(~np.isfinite(values[:, first]))
    return (int(culprits[0]) if len(culprits) else -1, int(wrong[first]))
