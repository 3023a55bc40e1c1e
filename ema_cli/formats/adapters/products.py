"""Products of A and B, in float64: the same bits on every processor, as each product and sum is rounded for itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Tensors
from ema_cli.folding.kernel.floats import decode
from ema_cli.folding.kernel.products import sum_products
from ema_cli.formats.adapters.pairs import Pair

Matrix = NDArray[np.float64]


def read_tensor(tensors: Tensors, name: str) -> Matrix:
    """Return a whole floating tensor in one dimension."""
    spec = tensors.specs[name]
    stored, values = np.empty(spec.nbytes, np.uint8), np.empty(spec.count)
    tensors.read_into(name, 0, stored.data)
    decode(spec.dtype, stored, values)
    return values


def read_pair(tensors: Tensors, pair: Pair) -> tuple[Matrix, Matrix]:
    """Return two factors of what a pair adds to the weights: [rows, rank], scaled, and [rank, columns].

    The product has the weights' elements in their order: rows are the first dimension, columns all others.
    """
    a = read_tensor(tensors, pair.a).reshape(pair.rank, -1)
    b = read_tensor(tensors, pair.b).reshape(-1, pair.rank) * pair.scale
    if pair.is_transposed:
        return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    return b, a


def add_product(left: Matrix, right: Matrix, begin: int, out: Matrix) -> None:
    """Add to `out` the elements of left x right from element `begin` on, in C order.

    Each is the sum over k, in order, of left[row, k] * right[k, column]; what is asked for at once does not show.
    """
    columns, position = right.shape[1], 0
    scratch = np.empty(max(columns, 2))
    while position < len(out):
        row, column = divmod(begin + position, columns)
        count = min(columns - column, len(out) - position)
        first = max(0, min(column, columns - 2))  # of two columns at least, which sum_products asks for
        wanted = right[:, first : max(column + count, first + 2)]
        if wanted.shape[1] < 2:
            wanted = np.repeat(wanted, 2, axis=1)
        sums = scratch[: wanted.shape[1]]
        sum_products(left[row], wanted, sums)
        out[position : position + count] += sums[column - first : column - first + count]
        position += count
