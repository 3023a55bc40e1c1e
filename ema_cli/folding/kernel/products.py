"""Sum products in one order, each rounded for itself, so that every processor gives the same bits."""

from __future__ import annotations

import numpy as np

from ema_cli.folding.kernel.floats import Floats


def sum_products(factors: Floats, rows: Floats, out: Floats) -> None:
    """Set `out` to the sum of factors[k] * rows[k], added in that order, each product and sum rounded.

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
    """Return whether einsum rounds products and sums apart, row after row, as numpy's own builds for x86 do.

    Where numpy is compiled for processors that fuse the two, or orders rows otherwise, other sums come out here.
    """
    dtypes: tuple[tuple[type[np.floating], int], ...] = ((np.float32, 24), (np.float64, 53))
    for dtype, bits in dtypes:
        near_one = dtype(1 + 2.0 ** -(bits // 2 + 1))  # its square has more bits than fit
        # Each sum is 0, except for what a fused step keeps, or another order does not lose.
        for terms in (((1.0, -near_one * near_one), (near_one, near_one)), ((1, 2.0**bits), (1, 1), (1, -(2.0**bits)))):
            factors, values = np.array(terms, dtype=dtype).T
            out = np.ones(37, dtype=dtype)
            np.einsum("k,kn->n", factors, values[:, None].repeat(37, axis=1), out=out)
            if out.any():
                return False
    return True


_EINSUM_IS_PLAIN = _is_einsum_plain()


def keep_zeros(average: Floats, newest: Floats) -> None:
    """Give zeros of `average` the sign that they have in `newest`: a sum that begins with 0.0 is never -0.0."""
    if not average.all():
        np.copyto(average, newest, where=(average == 0) & (newest == 0))


def is_within(values: Floats, limit: float) -> bool:
    """Return whether all values are finite, and below `limit` in magnitude."""
    return len(values) == 0 or bool(values.min() > -limit and values.max() < limit)
