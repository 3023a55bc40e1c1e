"""Convert stored numbers to floats and back.

Two bfloat16 numbers that lie side by side are taken apart with a shift and a mask, which is several times faster than
any conversion of single ones. Floats of such a block are in *paired order*: first all even elements, then all odd
ones. Stored elements 0 1 2 3 4 5 become floats 0 2 4 1 3 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.folding.kernel import sums_in_float64

Floats = NDArray[np.floating[Any]]

_HIGH = np.uint32(0xFFFF0000)
_SLICE = 1 << 14  # numbers at a time, where more would take memory


def sum_dtype(dtypes: Sequence[DType]) -> np.dtype[Any]:
    """Return the type in which blocks stored in `dtypes` are summed up."""
    return np.dtype(np.float64 if sums_in_float64(dtypes) else np.float32)


def is_stored_as(dtype: DType, floats: np.dtype[Any]) -> bool:
    """Return whether numbers of `dtype` are stored as arrays of `floats` hold them."""
    return dtype.averaged and dtype.component_bits == floats.itemsize * 8


def decode(dtype: DType, stored: NDArray[np.uint8], out: Floats) -> None:
    """Convert stored numbers to `out`, exactly and in their order: two for each complex element."""
    if dtype.numpy is not None:
        np.copyto(out, stored.view(dtype.numpy))
    elif out.dtype == np.float64:
        np.copyto(out, (stored.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32))
    else:
        bits = out.view(np.uint32)
        np.copyto(bits, stored.view("<u2"))
        np.left_shift(bits, 16, out=bits)


def decode_pairs(stored: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Convert rows of bfloat16, of an even number each, to rows of floats in paired order.

    stored: [K, 2 n] bytes; out: [K, n].
    """
    pairs, bits = stored.view("<u4"), out.view(np.uint32)
    half = pairs.shape[-1]
    np.left_shift(pairs, 16, out=bits[..., :half])
    np.bitwise_and(pairs, _HIGH, out=bits[..., half:])


def unpaired(indices: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Return which elements are at `indices` of `length` floats in paired order."""
    half = length // 2
    return np.where(indices < half, 2 * indices, 2 * (indices - half) + 1)


def encode(dtype: DType, values: Floats, scratch: Floats, *, paired: bool = False, numbers: bool = False) -> memoryview:
    """Round `values` once, to nearest and ties to even, and return the bytes to store, in the elements' order.

    Args:
        dtype: the dtype to store.
        values: [n] floats; overwritten.
        scratch: [n] of the same type; overwritten. What is returned lies in one of the two.
        paired: whether the values are in paired order.
        numbers: whether there is surely no NaN among them, which saves looking for it.
    """
    if dtype.numpy is None:  # bfloat16
        if values.dtype == np.float64:
            values, scratch = _round_to_odd(values), values.view(np.float32)[: len(values)]
        bits = _round_to_16_bits(values, scratch, numbers=numbers)
        if not paired:
            stored = scratch.view("<u2")[: len(bits)]
            np.right_shift(bits, 16, out=stored, casting="unsafe")
            return stored.data.cast("B")
        even, odd = bits[: len(bits) // 2], bits[len(bits) // 2 :]
        even >>= np.uint32(16)
        odd &= _HIGH
        even |= odd
        return even.data.cast("B")
    if paired:
        half = len(values) // 2
        scratch[0::2], scratch[1::2] = values[:half], values[half:]
        values, scratch = scratch, values
    if is_stored_as(dtype, values.dtype):
        return values.data.cast("B")
    stored = scratch.view(dtype.numpy)[: len(values)]
    np.copyto(stored, values, casting="same_kind")
    return stored.data.cast("B")


def _round_to_16_bits(
    values: NDArray[np.float32], scratch: NDArray[np.float32], *, numbers: bool
) -> NDArray[np.uint32]:
    """Return the bits of `values`, rounded in place so that the upper half of each is a bfloat16.

    A float32 has 16 bits more than a bfloat16. Adding 0x7FFF, and 1 if the last bit that is kept is odd, carries into
    it exactly where rounding to nearest, ties to even, goes up.
    """
    bits, step = values.view(np.uint32), scratch.view(np.uint32)
    # Rounding could carry a NaN over into a number; keep sign and upper payload, and make it quiet.
    nan = None if numbers else np.isnan(values)
    quiet = None if nan is None else bits[nan] | np.uint32(0x400000)
    np.right_shift(bits, 16, out=step)
    step &= np.uint32(1)
    step += np.uint32(0x7FFF)
    bits += step
    if nan is not None and quiet is not None:
        bits[nan] = quiet
    return bits


def _round_to_odd(values: Floats) -> NDArray[np.float32]:
    """Round float64 to float32 so that a second rounding, to fewer bits, gives what one rounding would.

    Round towards zero, and set the last bit where anything was cut off: then no inexact value is a tie for the second
    rounding. (S. Boldo, G. Melquiond: When double rounding is odd. IMACS 2005.)
    """
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    for start in range(0, len(values), _SLICE):
        part, wanted = slice(start, start + _SLICE), values[start : start + _SLICE]
        back = nearest[part].astype(np.float64)
        bits[part] -= (np.abs(back) > np.abs(wanted)).astype(np.uint32)
        bits[part] |= (back != wanted).astype(np.uint32)
    return nearest
