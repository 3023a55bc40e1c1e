"""Factoring a sum of products again: beside numpy's own decomposition of the dense sum, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from ema_cli.folding.factoring import Matrix, decompose, factor_sum, multiply, orthonormal, product_norm


def drawn(rows: int, columns: int, rank: int, count: int) -> tuple[list[Matrix], list[Matrix]]:
    """Return factors of several products, always the same."""
    draw = np.random.default_rng(7)
    lefts = [draw.normal(size=(rows, rank)) * 1e-3 for _ in range(count)]
    return lefts, [draw.normal(size=(rank, columns)) for _ in range(count)]


def nearest(dense: Matrix, rank: int) -> tuple[Matrix, float]:
    """Return the matrix of a rank that comes nearest (Eckart and Young), and the norm of what it loses."""
    u, values, v = np.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ v[:rank], float(np.linalg.norm(values[rank:]))


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "count", "wanted"),
    [
        (40, 30, 4, 5, 4),
        (40, 30, 4, 5, 20),
        (8, 30, 4, 5, 3),
        (30, 8, 4, 5, 3),
        (5, 7, 4, 3, 12),
        (1, 9, 2, 2, 1),
        (9, 1, 2, 2, 2),
        (1, 1, 1, 1, 1),
        (30, 20, 3, 1, 2),
    ],
)
def test_factors_are_the_nearest_of_their_rank(rows: int, columns: int, rank: int, count: int, wanted: int) -> None:
    """Their product, and what it loses, are those of numpy's decomposition, whatever is longer than what."""
    lefts, rights = drawn(rows, columns, rank, count)
    dense = sum(left @ right for left, right in zip(lefts, rights, strict=True))
    factors = factor_sum(lefts, rights, wanted)
    expected, lost = nearest(dense, wanted)
    scale = np.abs(dense).max()
    assert factors.left.shape == (rows, wanted)
    assert factors.right.shape == (wanted, columns)
    np.testing.assert_allclose(factors.left @ factors.right, expected, rtol=0, atol=1e-12 * scale)
    assert factors.norm == pytest.approx(float(np.linalg.norm(dense)), rel=1e-12)
    assert factors.lost == pytest.approx(lost, rel=1e-9, abs=1e-12 * factors.norm)
    # Neither factor has more of it than the other.
    np.testing.assert_allclose((factors.left**2).sum(0), (factors.right**2).sum(1), rtol=1e-9, atol=1e-30)


def test_neighbours_that_are_almost_equal_lose_nothing() -> None:
    """Checkpoints of one run are alike: rows that differ in their last digits, or not at all, give no noise."""
    draw = np.random.default_rng(1)
    left, right = draw.normal(size=(20, 3)), draw.normal(size=(3, 15))
    alike = [left + 1e-9 * draw.normal(size=left.shape) for _ in range(4)]
    for lefts in ([left] * 4, alike):
        factors, dense = factor_sum(lefts, [right] * 4, 3), sum(each @ right for each in lefts)
        np.testing.assert_allclose(factors.left @ factors.right, dense, rtol=0, atol=1e-14 * np.abs(dense).max())
        assert factors.lost <= 1e-14 * factors.norm


def test_weights_may_be_negative_and_sums_vanish() -> None:
    """What cancels is zero, and factors of zero are zeros: nothing is divided by it."""
    lefts, rights = drawn(6, 5, 2, 1)
    factors = factor_sum([lefts[0], -lefts[0]], rights * 2, 2)
    assert np.abs(factors.left @ factors.right).max() < 1e-18
    zeros = factor_sum([np.zeros((6, 2))], rights, 2)
    assert not zeros.left.any()
    assert not zeros.right.any()
    assert (zeros.norm, zeros.lost) == (0.0, 0.0)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
def test_small_and_large_numbers_are_scaled(scale: float) -> None:
    """Squares that no float holds do not come up."""
    lefts, rights = drawn(6, 5, 2, 2)
    dense = sum(left @ right for left, right in zip(lefts, rights, strict=True))
    factors = factor_sum([left * scale for left in lefts], [right / scale for right in rights], 4)
    np.testing.assert_allclose(factors.left @ factors.right, dense, rtol=0, atol=1e-12 * np.abs(dense).max())


@pytest.mark.parametrize("scale", [1e-310, 1e-160, 1e160])
def test_norms_of_small_and_large_sums_are_told(scale: float) -> None:
    """Nor do squares of a norm: what is lost is as large a share as of a sum of any size."""
    lefts, rights = drawn(6, 5, 2, 2)
    factors, plain = factor_sum([left * scale for left in lefts], rights, 2), factor_sum(lefts, rights, 2)
    assert factors.lost / factors.norm == pytest.approx(plain.lost / plain.norm, rel=1e-9 if scale > 1e-300 else 1e-6)


def test_a_sum_that_no_float_holds_is_infinite() -> None:
    """And raises no warning on the way; the largest numbers whose product is in range have one."""
    assert not np.isfinite(factor_sum([np.full((3, 2), 1e200)], [np.full((2, 4), 1e200)], 1).left).any()
    assert factor_sum([np.full((1, 1), 1.7e308)], [np.ones((1, 1))], 1).norm == pytest.approx(1.7e308)


def test_the_norm_of_a_product_is_that_of_its_elements() -> None:
    """Of any sizes, and of none."""
    draw = np.random.default_rng(3)
    for left, right in ((draw.normal(size=(9, 2)), draw.normal(size=(2, 7))), (np.ones((1, 1)), np.full((1, 1), 3.0))):
        for scale in (1.0, 1e-200, 1e200):
            assert product_norm(left * scale, right) == pytest.approx(float(np.linalg.norm(left @ right)) * scale)
    assert product_norm(np.zeros((4, 2)), np.zeros((2, 3))) == 0.0


def test_bits_are_these() -> None:
    """Every processor gives the same bits: those of a run elsewhere, of numbers without a rounding of their own."""
    rows = np.array([[(3 * i * i + 5 * j + i * j) % 11 - 5 for j in range(7)] for i in range(6)], np.float64)
    basis, triangle = orthonormal(rows)
    u, values, v = decompose(multiply(triangle, basis))
    assert [value.hex() for value in values.tolist()] == BITS
    np.testing.assert_allclose(u.T @ np.diag(values) @ v, rows, atol=1e-13)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-14)


BITS = [
    "0x1.96c46149a77bbp+3",
    "0x1.292ff35286e7ap+3",
    "0x1.1367a69826430p+3",
    "0x1.d6646e14edb39p+2",
    "0x1.20c16b9b2e65bp+2",
    "0x1.161d190bb58dcp+1",
]
