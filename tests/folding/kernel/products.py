"""An average as the fold makes it, of rows in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ema_cli.dtypes import DType
from ema_cli.folding.kernel.floats import encode
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


def rows_of_bits(random: np.random.Generator, dtypes: Sequence[DType], count: int, shape: str) -> list[bytes]:
    """Return the stored bytes of a block in checkpoints of these dtypes.

    shape: "any bits", NaN of all kinds among them; "finite" ones of any magnitude; "near" each other, as checkpoints
        are; "equal"; "tiny", subnormals and zeros of both signs.
    """
    numbers = count * dtypes[0].components
    middle = random.standard_normal(numbers) * 10.0 ** random.integers(-6, 4, numbers)
    rows = []
    for dtype in dtypes:
        bits = random.integers(0, 256, dtype.nbytes(count), dtype=np.uint8).view(f"<u{dtype.component_bits // 8}")
        mask = bits.dtype.type
        mantissas = mask(~dtype.exponent_mask & (1 << dtype.component_bits) - 1)
        if shape == "finite":  # the lowest bit of the exponent is 0
            bits &= mantissas | mask(dtype.exponent_mask & dtype.exponent_mask << 1)
        if shape == "tiny":
            sign = mask(1 << dtype.component_bits - 1)
            bits &= np.where(random.random(numbers) < 0.5, sign, mantissas)
        if shape in ("near", "equal"):
            values = middle * (1 + 1e-2 * random.standard_normal(numbers)) if shape == "near" else middle
            floats = values.astype(np.float64 if dtype.component_bits == 64 else np.float32)
            rows.append(bytes(encode(dtype, floats, np.empty_like(floats))))
        else:
            rows.append(bits.tobytes())
    return rows
