"""From stored bytes to floats and back, and the sum of products in between. The only arithmetic on tensors.

Reproducible to the bit on every x86 processor: multiply and add stay apart (a fused multiply-add rounds
differently, and so does a sum whose order depends on the machine), checkpoints are added one after another, from the
newest to the oldest, and each element is computed alone: the size of a block does not matter.

Two bfloat16 numbers that lie side by side are taken apart with a shift and a mask, which is several times faster than
any conversion of single ones. Floats of such a block are in the order of `unpaired`: first all even elements, then
all odd ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType

Floats = NDArray[np.floating[Any]]

_HIGH = np.uint32(0xFFFF0000)
_SLICE = 1 << 14  # numbers at a time, where more would take memory


def work_dtype(dtypes: Sequence[DType]) -> np.dtype[Any]:
    """Return the float type in which tensors of `dtypes` are accumulated: float64 where one has that, else float32."""
    wide = any(dtype.averaged and dtype.component_bits == 64 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def is_stored_as(dtype: DType, work: np.dtype[Any]) -> bool:
    """Return whether numbers of `dtype` are stored as arrays of `work` hold them."""
    return dtype.averaged and dtype.component_bits == work.itemsize * 8


def components(dtype: DType) -> int:
    """Return how many real numbers make one element: a complex one is averaged part by part."""
    return dtype.components


def overflow_limit(dtype: DType, work: np.dtype[Any]) -> float:
    """Return the magnitude from which on a number of type `work` becomes infinite when rounded to `dtype`."""
    return np.inf if dtype.overflow > np.finfo(work).max else dtype.overflow


def decode(dtype: DType, raw: NDArray[np.uint8], out: Floats) -> None:
    """Convert stored numbers to `out`, exactly and in their order."""
    if dtype.numpy is not None:
        np.copyto(out, raw.view(dtype.numpy))
    elif out.dtype == np.float64:
        np.copyto(out, (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32))
    else:
        bits = out.view(np.uint32)
        np.copyto(bits, raw.view("<u2"))
        np.left_shift(bits, 16, out=bits)


def decode_pairs(raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Convert rows of bfloat16, of an even number each, to rows of floats: even elements first, then odd ones."""
    pairs, bits = raw.view("<u4"), out.view(np.uint32)
    half = pairs.shape[-1]
    np.left_shift(pairs, 16, out=bits[..., :half])
    np.bitwise_and(pairs, _HIGH, out=bits[..., half:])


def unpaired(indices: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Return which elements are at `indices` of `length` floats that `decode_pairs` made."""
    half = length // 2
    return np.where(indices < half, 2 * indices, 2 * (indices - half) + 1)


def sum_products(factors: Floats, rows: Floats, out: Floats) -> None:
    """Set `out` to the sum of factors[k] * rows[k], added in that order, multiply and add each rounded.

    factors: [K]; rows: [K, n]; out: [n], n at least 2. One call for many rows: einsum's loop over a row multiplies
    and adds in one pass over memory.
    """
    if _EINSUM_IS_PLAIN:
        np.einsum("k,kn->n", factors, rows, out=out)
        return
    out.fill(0)
    product = np.empty_like(out)
    for factor, row in zip(factors, rows, strict=True):
        np.multiply(row, factor, out=product)
        np.add(out, product, out=out)


def _is_einsum_plain() -> bool:
    """Return whether einsum multiplies and adds apart, row after row, as numpy's own builds for x86 do.

    Where numpy is compiled for processors that fuse the two, or orders rows otherwise, other sums come out here.
    """
    dtypes: tuple[tuple[type[np.floating[Any]], int], ...] = ((np.float32, 24), (np.float64, 53))
    for dtype, bits in dtypes:
        near_one = dtype(1 + 2.0 ** -(bits // 2 + 1))  # its square has more bits than fit
        # Each comes to 0, but for what a fused step keeps, or what another order does not lose.
        for terms in (((1.0, -near_one * near_one), (near_one, near_one)), ((1, 2.0**bits), (1, 1), (1, -(2.0**bits)))):
            factors, values = np.array(terms, dtype=dtype).T
            out = np.ones(37, dtype=dtype)
            np.einsum("k,kn->n", factors, values[:, None].repeat(37, axis=1), out=out)
            if out.any():
                return False
    return True


_EINSUM_IS_PLAIN = _is_einsum_plain()


def keep_zeros(average: Floats, newest: Floats) -> None:
    """Give zeros the sign that the newest checkpoint's have: a sum that begins with 0.0 cannot come to -0.0."""
    if not average.all():
        np.copyto(average, newest, where=(average == 0) & (newest == 0))


def is_within(values: Floats, limit: float) -> bool:
    """Return whether all values are finite, and below `limit` in magnitude."""
    return len(values) == 0 or bool(values.min() > -limit and values.max() < limit)


def settle_non_finite(
    load: Callable[[int], Floats], weights: Sequence[float], average: Floats, limit: float, *, plain: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Mend in `average` what only looked non-finite; return where it truly is: indices, and a checkpoint for each.

    `load(k)` returns the values of checkpoint k, oldest first. Those whose weight is 0 do not count, though they may
    have spoilt a sum: 0 times infinity is NaN. So the sum is made once more, as before but without them (`plain`: of
    the values, not of differences to the newest); in float64 where it overflowed although the average does not.
    Infinities that are equal in all checkpoints are kept (an attention mask). The checkpoint is -1 where only the
    average is too large for its dtype. What is returned holds its IEEE value afterwards.
    """
    wrong = np.flatnonzero(~(np.abs(average) < limit))
    entering = [number for number, weight in enumerate(weights) if weight]
    newest = load(entering[-1])[wrong]
    again, exact = np.zeros_like(newest), np.zeros(len(wrong))
    same, culprit = np.ones(len(wrong), dtype=bool), np.full(len(wrong), -1)
    for number in reversed(entering):
        values = newest if number == entering[-1] else load(number)[wrong]
        same &= values == newest
        culprit[~np.isfinite(values)] = number
        exact += weights[number] * values.astype(np.float64)
        again += (values if plain else values - newest) * values.dtype.type(weights[number])
    if not plain:
        again += newest
    keep_zeros(again, newest)
    overflowed = ~(np.abs(again) < limit)
    again[overflowed] = exact[overflowed].astype(again.dtype)
    again[same] = newest[same]
    again[np.isnan(again)] = np.nan  # one NaN, whatever those were that met
    if len(entering) == 1:
        again = newest  # as where it is copied
    average[wrong] = again
    # Finite and equal everywhere can still be too large for a narrower output.
    still = ~(same & np.isinf(newest)) & ~(np.abs(again) < limit)
    return wrong[still], culprit[still]


def encode(dtype: DType, values: Floats, scratch: Floats, *, paired: bool = False, numbers: bool = False) -> memoryview:
    """Round `values` once, to nearest and ties to even, and return the bytes to store, in the elements' order.

    `paired`: the values are in the order of `decode_pairs`. `numbers`: there is no NaN among them. `values` and
    `scratch`, of the same size, are overwritten, and hold what is returned.
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
    """Return the bits of `values`, rounded in place so that the upper half of each is a bfloat16."""
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
    """Round float64 to float32 so that a second rounding, to fewer bits, gives what one rounding would."""
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    for start in range(0, len(values), _SLICE):
        part, wanted = slice(start, start + _SLICE), values[start : start + _SLICE]
        back = nearest[part].astype(np.float64)
        bits[part] -= (np.abs(back) > np.abs(wanted)).astype(np.uint32)
        bits[part] |= (back != wanted).astype(np.uint32)
    return nearest
