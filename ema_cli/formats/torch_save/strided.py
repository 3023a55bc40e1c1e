"""Read a tensor that does not lie in C order (a transpose, a slice, an expansion) by range, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DType
from ema_cli.storage.source import ByteSource

_BLOCK = 1 << 17  # elements gathered at once
_GAP_BYTES = 256  # neighbours closer than this are read together: cheaper than another read


def gather(
    file: ByteSource, base: int, spec: TensorSpec, strides: tuple[int, ...], start: int, out: memoryview
) -> None:
    """Fill `out` with a range of a tensor in C order.

    Args:
        file: holds the tensor.
        base: the byte of the file at which the tensor's first element lies.
        spec: its dtype and shape.
        strides: its strides in elements.
        start: the first byte of the range, in C order.
        out: takes the bytes; its size is that of the range.
    """
    size = spec.dtype.itemsize
    first, count = start // size, len(out) // size
    for begin in range(0, count, _BLOCK):
        block = min(_BLOCK, count - begin)
        offsets = _element_offsets(spec.shape, strides, first + begin, block)
        elements = np.frombuffer(out, dtype=f"V{size}", count=block, offset=begin * size)
        _read_elements(file, base, offsets, elements)


def scatter(
    write: Callable[[int, memoryview], None],
    base: int,
    spec: TensorSpec,
    strides: tuple[int, ...],
    start: int,
    data: memoryview,
) -> None:
    """Write a range of a tensor, given in C order, to where its elements lie; no other byte is written.

    Args:
        write: writes bytes at a byte of the file.
        base: the byte of the file at which the tensor's first element lies.
        spec: its dtype and shape.
        strides: its strides in elements; no two elements lie in one place.
        start: the first byte of the range, in C order.
        data: the bytes.
    """
    size = spec.dtype.itemsize
    first, count = start // size, len(data) // size
    for begin in range(0, count, _BLOCK):
        block = min(_BLOCK, count - begin)
        offsets = _element_offsets(spec.shape, strides, first + begin, block)
        order = np.argsort(offsets, kind="stable")
        ascending = offsets[order]
        elements = np.frombuffer(data, dtype=f"V{size}", count=block, offset=begin * size)[order]
        stored = memoryview(elements.tobytes())
        breaks = [0, *(np.flatnonzero(np.diff(ascending) != 1) + 1).tolist(), block]
        for low, high in pairwise(breaks):
            write(base + int(ascending[low]) * size, stored[low * size : high * size])


def apply_lazy_bits(dtype: DType, out: memoryview, *, conjugate: bool, negative: bool) -> None:
    """Apply torch's conjugate and negative bits, which it stores instead of changing the bytes."""
    bits = 8 * dtype.itemsize // (2 if dtype.kind == "complex" else 1)
    parts = np.frombuffer(out, f"<u{bits // 8}")
    sign = parts.dtype.type(1 << (bits - 1))
    if negative:
        np.bitwise_xor(parts, sign, out=parts)
    if conjugate:
        np.bitwise_xor(parts[1::2], sign, out=parts[1::2])


def _element_offsets(
    shape: tuple[int, ...], strides: tuple[int, ...], first: int, count: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the offsets, in elements, of `count` elements of the tensor from number `first` on in C order."""
    index = np.arange(first, first + count, dtype=np.int64)
    offsets = np.zeros(count, dtype=np.int64)
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        index, position = np.divmod(index, length)
        offsets += position * stride
    return offsets


def _read_elements(
    file: ByteSource,
    base: int,
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]],
    elements: np.ndarray[tuple[int], np.dtype[np.void]],
) -> None:
    """Fill `elements` with the elements at `offsets`; neighbours are read together."""
    size = elements.itemsize
    order = np.argsort(offsets, kind="stable")
    ascending = offsets[order]
    breaks = np.flatnonzero(np.diff(ascending) * size > _GAP_BYTES) + 1
    for part in np.split(np.arange(len(order)), breaks):
        low, high = int(ascending[part[0]]), int(ascending[part[-1]])
        span = np.frombuffer(file.read(base + low * size, (high - low + 1) * size), dtype=elements.dtype)
        elements[order[part]] = span[ascending[part] - low]
