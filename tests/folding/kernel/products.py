"""An average as the fold makes it, of rows in memory."""

from __future__ import annotations

import numpy as np

from ema_cli.folding.kernel.products import keep_zeros, sum_products


def average_of(rows: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Return the average as the fold makes it: the newest and the weighted differences to it, the newest first."""
    newest = rows[-1]
    total = np.empty_like(newest)
    with np.errstate(all="ignore"):
        differences = np.array([row - newest for row in reversed(rows)])
        sum_products(np.array(weights[::-1], dtype=newest.dtype), differences, total)
        total += newest
        keep_zeros(total, newest)
    return total
