"""Settle what is not finite in an average that is rounded already, with numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.folding.kernel import Load, NonFiniteElements, SumSpec, overflow_limit
from ema_cli.folding.kernel.floats import Floats, decode, encode, sum_dtype
from ema_cli.folding.kernel.settling import settle


def settle_rounded(
    average: memoryview, spec: SumSpec, weights: Sequence[float], load: Load, *, plain: bool
) -> NonFiniteElements:
    """Mend what only looks non-finite in an average; return what is.

    That it is rounded loses nothing of the finite elements; the others are summed up anew.

    Args:
        average: the bytes as they are stored; corrected in place.
        spec: what was summed up.
        weights: of each checkpoint, the oldest first.
        load: fills memory with the block of a checkpoint, as it is stored.
        plain: whether the sum is that of rule 3.
    """

    def decoded(dtype: DType, stored: NDArray[np.uint8]) -> Floats:
        values: Floats = np.empty(spec.count * spec.target.components, sum_dtype(spec.dtypes))
        decode(dtype, stored, values)
        return values

    def values(number: int) -> Floats:
        dtype = spec.dtypes[number]
        stored = np.empty(dtype.nbytes(spec.count), np.uint8)
        load(number, stored.data)
        return decoded(dtype, stored)

    stored = np.frombuffer(average, np.uint8)
    with np.errstate(all="ignore"):
        total = decoded(spec.target, stored)
        wrong, culprits = settle(values, weights, total, overflow_limit(spec.target, spec.dtypes), plain=plain)
        infinite = np.isinf(total)
        infinite[wrong] = False
        np.copyto(stored, np.frombuffer(encode(spec.target, total, np.empty_like(total)), np.uint8))
    return NonFiniteElements(
        wrong=wrong // spec.target.components,
        culprits=culprits,
        infinite=np.flatnonzero(infinite) // spec.target.components,
    )
