"""Tensors that do not lie in order, or are kept in another type: where their elements go, and how they are rounded."""

from __future__ import annotations

import numpy as np

from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DType
from ema_cli.folding.kernel.floats import decode, encode, sum_dtype


class Overlapping(Exception):
    """Why nothing can be put into the places of a tensor's elements, in words."""


_MOST_RUNS = 1 << 20  # of one tensor with gaps between its elements


def runs_of(base: int, spec: TensorSpec, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the ranges of a file that hold the elements of a tensor: first byte, and the one behind.

    Args:
        base: the byte at which its first element lies.
        spec: its dtype and shape.
        strides: in elements.

    Raises:
        Overlapping: where several elements share their bytes.
    """
    size = spec.dtype.itemsize
    # From the innermost dimension outwards: those without gaps are one run.
    sides = sorted((stride, length) for stride, length in zip(strides, spec.shape, strict=True) if length > 1)
    run, reach, starts = 1, 1, np.zeros(1, np.int64)
    for stride, length in sides:
        if stride < reach:
            raise Overlapping("is a view of which several elements share their bytes")
        if stride == run and len(starts) == 1:
            run *= length
        else:
            starts = (np.arange(length)[:, None] * stride + starts).reshape(-1)
        reach = (length - 1) * stride + reach
        if len(starts) > _MOST_RUNS:
            raise Overlapping("is a view with millions of gaps")
    begins = (base + starts * size).tolist()
    return [(begin, begin + run * size) for begin in begins]


def rounded(dtype: DType, narrower: DType, data: memoryview) -> memoryview:
    """Return numbers of one dtype in another, each rounded once."""
    stored = np.frombuffer(data, np.uint8)
    values = np.empty(len(data) // dtype.itemsize, sum_dtype([dtype]))
    decode(dtype, stored, values)
    with np.errstate(all="ignore"):
        return encode(narrower, values, np.empty_like(values))
