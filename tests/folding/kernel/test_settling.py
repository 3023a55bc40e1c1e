"""Which NaN and infinity of an average are mended, kept or named."""

from __future__ import annotations

import numpy as np
import pytest

from ema_cli.dtypes import DTYPES
from ema_cli.folding.kernel import overflow_limit, settling
from tests.folding.kernel.products import average_of


def settle(rows: list[list[float]], weights: list[float], limit: float = np.inf) -> tuple[np.ndarray, object]:
    """Average, then settle what is not finite."""
    arrays = [np.array(row, dtype=np.float32) for row in rows]
    average = average_of(arrays, weights)
    with np.errstate(all="ignore"):
        indices, numbers = settling.settle(lambda number: arrays[number], weights, average, limit)
    return average, (int(numbers[0]), int(indices[0])) if len(indices) else None


def test_an_infinity_that_is_equal_everywhere_passes():
    """An attention mask's -inf is kept, and its neighbours are what they are without it."""
    average, found = settle([[-np.inf, 1.0], [-np.inf, 3.0]], [0.5, 0.5])
    assert found is None
    assert average.tolist() == [-np.inf, 2.0]


def test_a_difference_that_overflows_does_not_spoil_the_average():
    """3e38 and -3e38 average to 0 although their difference is beyond float32."""
    average, found = settle([[3e38, 1.0], [-3e38, 2.0]], [0.5, 0.5])
    assert found is None
    assert average[0] == pytest.approx(0, abs=1e31)
    assert average[1] == 1.5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, np.nan], [1, 1], [1, 1]], (0, 1)),
        ([[1, 1], [np.inf, 1], [1, 1]], (1, 0)),
        ([[np.inf, 1], [np.inf, 1], [-np.inf, 1]], (0, 0)),
        ([[np.nan, 1], [np.nan, 1], [np.nan, 1]], (0, 0)),
    ],
)
def test_the_first_checkpoint_and_element_that_are_not_finite_are_named(
    rows: list[list[float]], expected: tuple[int, int]
):
    """The first checkpoint and element that hold NaN, or an infinity the others do not share, are named."""
    assert settle(rows, [0.25, 0.25, 0.5])[1] == expected


def test_an_average_too_large_for_its_dtype_is_nobody_s_fault():
    """Where every input is finite and only the cast overflows, no checkpoint is blamed."""
    limit = overflow_limit(DTYPES["F16"], [DTYPES["F32"]])
    assert settle([[1.0, 70000.0], [1.0, 70000.0]], [0.5, 0.5], limit)[1] == (-1, 1)
    assert settle([[1.0, 60000.0], [1.0, 80000.0]], [0.5, 0.5], limit)[1] == (-1, 1)
