"""Sums of products against float64 and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.folding.kernel import products
from ema_cli.folding.kernel.products import is_within, sum_products
from tests.folding.kernel.products import average_of


def test_equal_values_come_out_bit_equal():
    """Frozen values do not drift, negative zero and denormals included, whatever the weights."""
    frozen = np.array([0.1, -0.0, 1e-45, -3e38, 1 / 3], dtype=np.float32)
    weights = [0.1, 0.2, 0.3, 0.15, 0.25]
    average = average_of([frozen] * 5, weights)
    np.testing.assert_array_equal(average.view(np.uint32), frozen.view(np.uint32))


@given(st.data())
def test_the_average_is_near_float64(data: st.DataObject):
    """Float32 accumulation stays within a few rounding errors of the largest input."""
    count = data.draw(st.integers(2, 12))
    raw = data.draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    weights = [each / sum(raw) for each in raw]
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = list(np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32))
    expected = np.average(np.array(rows, dtype=np.float64), axis=0, weights=weights)
    scale = np.abs(rows).max(axis=0)
    assert np.all(np.abs(average_of(rows, weights) - expected) <= 2.0**-22 * scale * count)


def test_within_refuses_nan_infinity_and_what_is_too_large():
    """One look at the extremes finds every value that is not fit to be written."""
    assert is_within(np.array([], dtype=np.float32), 1.0)
    assert is_within(np.array([-0.5, 0.5], dtype=np.float32), 1.0)
    for bad in (np.nan, np.inf, -np.inf, 1.0, -1.0):
        assert not is_within(np.array([0.0, bad, 0.5], dtype=np.float32), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("plain", [True, False])
def test_products_are_summed_one_after_another_each_rounded(
    dtype: type[np.floating], plain: bool, monkeypatch: pytest.MonkeyPatch
):
    """Multiply and add are rounded each, row after row, for every width: einsum's sum is that of two plain loops."""
    monkeypatch.setattr(products, "_EINSUM_IS_PLAIN", plain)
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 8, 9, 17):
        for width in (*range(2, 40), 257, 4096, 100_003):
            rows = random.standard_normal((count, width)).astype(dtype)
            factors = random.standard_normal(count).astype(dtype)
            expected = np.zeros(width, dtype=dtype)
            for factor, row in zip(factors, rows, strict=True):
                product = row * factor
                expected = expected + product
            found = np.full(width, np.nan, dtype=dtype)
            sum_products(factors, rows, found)
            np.testing.assert_array_equal(found, expected)


def test_einsum_is_found_out_if_it_fuses_or_reorders(monkeypatch: pytest.MonkeyPatch):
    """A build of numpy that multiplies and adds in one step, or adds in another order, is not taken for a plain one."""
    assert products._is_einsum_plain()

    def fused(_: str, factors: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        wide = np.longdouble if out.dtype == np.float64 else np.float64
        total = np.zeros_like(out)
        for factor, row in zip(factors, rows, strict=True):
            total = (total.astype(wide) + factor.astype(wide) * row.astype(wide)).astype(out.dtype)
        out[:] = total

    def backwards(_: str, factors: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        out.fill(0)
        for factor, row in zip(factors[::-1], rows[::-1], strict=True):
            out += factor * row

    for other in (fused, backwards):
        monkeypatch.setattr(np, "einsum", other)
        assert not products._is_einsum_plain()
