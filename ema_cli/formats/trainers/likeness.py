"""Tell whether tensors may be averages of others, by the numbers with which they begin.

An average of weights is correlated with them. Two parts of a model that only have the same names and shapes are not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from math import isfinite, sqrt

from ema_cli.dtypes import TORCH_DTYPES, DType
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.trainers.layout import Unpickled
from ema_cli.formats.trainers.matching import Shaped

Numbers = Callable[[str, Shaped], Sequence[float]]
"""Returns the first numbers of a tensor, given its name, too; none where they cannot be read as floats."""

SAMPLE_BYTES = 1 << 9
_TENSORS = 16  # that are sampled
_LEAST, _MOST = 0.2, 0.9  # the correlation from which on many numbers, and few, are related
_CODES = {"F64": "d", "F32": "f", "F16": "e"}


def decode(dtype: DType, stored: bytes) -> Sequence[float]:
    """Return stored elements as numbers; none where they are no floats, or some are not finite."""
    count = len(stored) // dtype.itemsize
    if dtype.name == "BF16":
        stored = b"".join(b"\0\0" + stored[at : at + 2] for at in range(0, 2 * count, 2))
    code = "f" if dtype.name == "BF16" else _CODES.get(dtype.name)
    numbers = struct.unpack(f"<{count}{code}", stored) if code else ()
    return numbers if all(map(isfinite, numbers)) else ()


def numbers_of(file: Unpickled) -> Numbers:
    """Return what reads the first numbers of the tensors that a pickle describes."""

    def numbers(name: str, ref: Shaped) -> Sequence[float]:
        dtype = TORCH_DTYPES.get(ref.dtype) if isinstance(ref, TensorRef) else None
        if dtype is None or not isinstance(ref, TensorRef) or dtype.kind != "float":
            return ()
        return decode(dtype, file.beginning(name, ref, SAMPLE_BYTES))

    return numbers


def are_related(
    pairs: Iterable[tuple[str, Shaped, Shaped]], numbers: Numbers, *, unless_constant: bool = False
) -> bool:
    """Return whether tensors are correlated with those of which they may be averages, or equal where none varies.

    Args:
        pairs: a name, a tensor, and the one of which it may be an average.
        numbers: reads the first numbers of a tensor.
        unless_constant: whether they need not be equal where none varies.
    """
    every = list(pairs)
    count, total, all_equal = 0, 0.0, True
    for name, one, other in every[:: max(len(every) // _TENSORS, 1)]:
        mine, theirs = numbers(name, one), numbers(name, other)
        all_equal = all_equal and bool(mine) and mine == theirs
        correlation = _correlation(mine, theirs) if len(mine) == len(theirs) and len(mine) > 1 else None
        if correlation is not None:
            count += len(mine)
            total += len(mine) * correlation
    return total / count > min(max(_LEAST, 3 / sqrt(count)), _MOST) if count else all_equal or unless_constant


def _correlation(mine: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the correlation of two rows of numbers, None where one of them does not vary."""
    my_mean, their_mean = sum(mine) / len(mine), sum(theirs) / len(theirs)
    mine, theirs = [value - my_mean for value in mine], [value - their_mean for value in theirs]
    norm = sqrt(sum(value * value for value in mine)) * sqrt(sum(value * value for value in theirs))
    if not isfinite(norm) or norm < 1e-30:
        return None
    return sum(one * other for one, other in zip(mine, theirs, strict=True)) / norm
