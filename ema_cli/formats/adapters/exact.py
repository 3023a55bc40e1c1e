"""The average of the products BA of a LoRA adapter, written as A and B of any rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ema_cli.checkpoint import Checkpoint
from ema_cli.dtypes import DType
from ema_cli.errors import NonFiniteError, option
from ema_cli.folding.factoring import factor_sum, product_norm
from ema_cli.folding.fold import Factored
from ema_cli.folding.kernel.floats import decode, encode
from ema_cli.folding.sink import Sink, TensorRange
from ema_cli.formats.adapters.pairs import Pair
from ema_cli.formats.adapters.products import Matrix, read_pair


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
    norms, lost = list[float](), list[float]()
    entering = [(one.tensors, weight) for one, weight in zip(checkpoints, weights, strict=True) if weight]
    for pair in pairs:
        read = [read_pair(tensors, pair) for tensors, _ in entering]
        if not all(np.isfinite(factor).all() for factors in read for factor in factors):
            raise NonFiniteError(f"'{pair.a}' or '{pair.b}' is not finite: their product has no factors")
        lefts = [left * weight for (left, _), (_, weight) in zip(read, entering, strict=True)]
        factors = factor_sum(lefts, [right for _, right in read], rank)
        a, b = (factors.left.T, factors.right.T) if pair.is_transposed else (factors.right, factors.left)
        rounded = []
        for name, values in ((pair.a, a), (pair.b, b)):
            stored = _stored(name, values, dtypes[name])
            sink.write([TensorRange(name, 0, dtypes[name].nbytes(values.size))], stored)
            rounded.append(_difference(stored, dtypes[name], values))
        norms.append(factors.norm)
        # To round A and B moves their product by dB (A + dA) + B dA; it hardly turns it to what the rank cuts off.
        moved = product_norm(np.hstack([rounded[1], b]), np.vstack([a + rounded[0], rounded[0]]))
        lost.append(_joint_norm([factors.lost, moved]))
    errors = [_ratio(one, other) for one, other in zip(lost, norms, strict=True)]
    worst = max(range(len(pairs)), key=errors.__getitem__)
    return Factored(rank, _ratio(_joint_norm(lost), _joint_norm(norms)), (pairs[worst].module, errors[worst]))


def _joint_norm(norms: Sequence[float]) -> float:
    """Return the norm of parts that have these; not by `math.hypot`, whose last bit is another in another Python."""
    largest = max(norms)
    return largest * math.sqrt(math.fsum((norm / largest) * (norm / largest) for norm in norms)) if largest else 0.0


def _ratio(lost: float, norm: float) -> float:
    return lost / norm if norm else 0.0


def _difference(stored: memoryview, dtype: DType, values: Matrix) -> Matrix:
    """Return by how much what is stored differs from the values of which it was made."""
    read = np.empty(values.size)
    decode(dtype, np.frombuffer(stored, np.uint8), read)
    return read.reshape(values.shape) - values


def _stored(name: str, values: Matrix, dtype: DType) -> memoryview:
    flat = np.array(values, order="C").ravel()
    with np.errstate(all="ignore"):
        if not float(np.abs(flat).max(initial=0.0)) < dtype.overflow:
            raise NonFiniteError(
                f"'{name}' would hold a number that is too large for {dtype.name}",
                hint=f"write it in a wider type: {option('dtype', 'float32')}",
            )
        return encode(dtype, flat, np.empty_like(flat))
