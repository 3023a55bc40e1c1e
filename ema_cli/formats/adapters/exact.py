"""The average of the products BA of a LoRA adapter, written as A and B of any rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ema_cli.checkpoint import Checkpoint
from ema_cli.dtypes import DType
from ema_cli.errors import NonFiniteError, option
from ema_cli.folding.factoring import factor_sum
from ema_cli.folding.fold import Factored
from ema_cli.folding.kernel.floats import encode
from ema_cli.folding.sink import Sink, TensorRange
from ema_cli.formats.adapters.pairs import Pair
from ema_cli.formats.adapters.products import read_pair


def write_products(
    pairs: Sequence[Pair],
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    rank: int,
    dtypes: Mapping[str, DType],
    sink: Sink,
) -> Factored:
    """Write A and B of each pair, so that BA is the average of its products as nearly as that rank allows.

    Args:
        pairs: those of an adapter, the same in all checkpoints.
        checkpoints: oldest first.
        weights: one for each; a checkpoint of weight 0 does not enter.
        rank: of what is written.
        dtypes: those that A and B are written in, by name.
        sink: takes them.

    Raises:
        CheckpointError: where one cannot be read.
        NonFiniteError: for a number that is too large for its dtype.
    """
    squares, lost = [], []
    entering = [(one.tensors, weight) for one, weight in zip(checkpoints, weights, strict=True) if weight]
    for pair in pairs:
        read = [read_pair(tensors, pair) for tensors, _ in entering]
        if not all(np.isfinite(factor).all() for factors in read for factor in factors):
            raise NonFiniteError(f"'{pair.a}' or '{pair.b}' is not finite: their product has no factors")
        lefts = [left * weight for (left, _), (_, weight) in zip(read, entering, strict=True)]
        factors = factor_sum(lefts, [right for _, right in read], rank)
        squares.append(factors.square)
        lost.append(factors.lost)
        a, b = (factors.left.T, factors.right.T) if pair.is_transposed else (factors.right, factors.left)
        for name, values in ((pair.a, a), (pair.b, b)):
            sink.write([TensorRange(name, 0, dtypes[name].nbytes(values.size))], _stored(name, values, dtypes[name]))
    errors = [_ratio(one, other) for one, other in zip(lost, squares, strict=True)]
    worst = max(range(len(pairs)), key=errors.__getitem__)
    return Factored(rank, _ratio(math.fsum(lost), math.fsum(squares)), (pairs[worst].module, errors[worst]))


def _ratio(lost: float, square: float) -> float:
    return math.sqrt(lost / square) if square else 0.0


def _stored(name: str, values: np.ndarray[tuple[int, int], np.dtype[np.float64]], dtype: DType) -> memoryview:
    flat = np.array(values, order="C").ravel()
    with np.errstate(all="ignore"):
        if float(np.abs(flat).max(initial=0.0)) >= dtype.overflow:
            raise NonFiniteError(
                f"'{name}' would hold a number that is too large for {dtype.name}",
                hint=f"write it in a wider type: {option('dtype', 'float32')}",
            )
        return encode(dtype, flat, np.empty_like(flat))
