"""Factor a sum of products of thin matrices again, by a truncated singular value decomposition.

With numpy's elementwise operations alone: the bytes of LAPACK and BLAS differ by processor and number of threads, and
these do not. The sum of n products of rank r has rank n r at most, so that the decomposition is of a small matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ema_cli.dataclass import dataclass
from ema_cli.folding.kernel.products import sum_products

Matrix = NDArray[np.float64]
Indices = NDArray[np.intp]

_COLUMNS = 1 << 14  # multiplied at once: the products of many rows take memory
_NEGLIGIBLE = 2.0**-50  # of a norm: what is left of it is rounding
_MOST_SWEEPS = 60  # ten are many


@dataclass(frozen=True, slots=True)
class Factors:
    """Two factors whose product comes nearest to a sum, in the Frobenius norm, among those of their rank.

    Attributes:
        left: [rows, rank]; right: [rank, columns]. Both have the same singular values; where the sum has a smaller
            rank, the last columns and rows are 0.
        norm: that of the sum.
        lost: the norm of the difference.
    """

    left: Matrix
    right: Matrix
    norm: float
    lost: float


def factor_sum(lefts: Sequence[Matrix], rights: Sequence[Matrix], rank: int) -> Factors:
    """Return factors of the sum of lefts[k] x rights[k].

    Args:
        lefts: [rows, r_k] each, of finite numbers.
        rights: [r_k, columns] each.
        rank: of the factors.
    """
    left, left_exponent = _scaled(np.concatenate([each.T for each in lefts]))
    right, right_exponent = _scaled(np.concatenate(rights))
    # The sum is left^T right = Q1^T (T1^T T2) Q2, with orthonormal rows in Q1 and Q2.
    basis, triangle = orthonormal(left)
    other_basis, other_triangle = orthonormal(right)
    u, values, v = decompose(multiply(np.ascontiguousarray(triangle.T), other_triangle))
    exponent = left_exponent + right_exponent
    norm, lost = (_times(np.sqrt([_total(some * some)]), exponent)[0] for some in (values, values[rank:]))
    values = _times(values, exponent)
    roots, kept = np.sqrt(values[:rank])[:, None], len(values[:rank])
    factors = np.zeros((rank, left.shape[1])), np.zeros((rank, right.shape[1]))
    with np.errstate(all="ignore"):  # what is not finite, a caller finds
        factors[0][:kept] = multiply(u[:rank] * roots, basis)
        factors[1][:kept] = multiply(v[:rank] * roots, other_basis)
    return Factors(np.ascontiguousarray(factors[0].T), factors[1], float(norm), float(lost))


def product_norm(left: Matrix, right: Matrix) -> float:
    """Return the Frobenius norm of the product of a high and a wide matrix, without making it."""
    left, left_exponent = _scaled(left)
    right, right_exponent = _scaled(right)
    squares = multiply(np.ascontiguousarray(left.T), left) * multiply(right, np.ascontiguousarray(right.T))
    square = max(0.0, _total(squares.ravel()))
    return float(_times(np.sqrt([square]), left_exponent + right_exponent)[0])


def orthonormal(rows: Matrix) -> tuple[Matrix, Matrix]:
    """Return Q and T with rows = T Q, where the rows of Q are orthonormal.

    Gram and Schmidt's way, with each projection twice ("twice is enough": L. Giraud, J. Langou, M. Rozloznik, 2005). A
    row that is a combination of those before it adds none to Q.

    Args:
        rows: [m, n].

    Returns:
        Q [k, n] and T [m, k].
    """
    basis, triangle, count = np.zeros_like(rows), np.zeros((len(rows), len(rows))), 0
    for number, row in enumerate(rows):
        rest, before = row, _norm(row)
        for _ in range(2 if count else 0):
            shares = _dots(basis[:count], rest)
            rest = rest - multiply(shares[None], basis[:count])[0]
            triangle[number, :count] += shares
        after = _norm(rest)
        if after > before * _NEGLIGIBLE:
            basis[count] = rest / after
            triangle[number, count] = after
            count += 1
    return basis[:count], triangle[:, :count]


def decompose(matrix: Matrix) -> tuple[Matrix, NDArray[np.float64], Matrix]:
    """Return the singular value decomposition of a small matrix, by one-sided Jacobi rotations.

    Pairs of rows are turned until all are orthogonal, all pairs of a round at once (M. R. Hestenes, 1958).

    Args:
        matrix: [p, q].

    Returns:
        u [k, p], values [k] and v [k, q], with matrix = u^T diag(values) v and k = min(p, q); the largest first.
    """
    if matrix.shape[0] > matrix.shape[1]:
        v, values, u = decompose(np.ascontiguousarray(matrix.T))
        return u, values, v
    turned, turns = matrix.copy(), np.eye(len(matrix))
    for _ in range(_MOST_SWEEPS):
        # What is this small beside the largest row is rounding, and would be turned for ever.
        least = _NEGLIGIBLE * float(np.sqrt(_sums(turned * turned).max(initial=0.0)))
        if not sum([_turn(turned, turns, one, other, least) for one, other in _rounds(len(matrix))]):
            break
    values = np.sqrt(_sums(turned * turned))
    order = np.argsort(-values, kind="stable")
    values, turned, turns = values[order], turned[order], turns[order]
    divisors = np.where(values > 0, values, 1.0)
    return turns, values, turned / divisors[:, None]


def _turn(rows: Matrix, turns: Matrix, one: Indices, other: Indices, least: float) -> int:
    """Turn pairs of rows so that they are orthogonal, and `turns` with them; return how many were not."""
    first, second = rows[one], rows[other]
    alpha, beta, gamma = _sums(first * first), _sums(second * second), _sums(first * second)
    norms = np.sqrt(alpha) * np.sqrt(beta)
    apart = (np.abs(gamma) > _NEGLIGIBLE * norms) & (np.minimum(alpha, beta) > least * least)
    if not apart.any():
        return 0
    one, other = one[apart], other[apart]
    zeta = (beta[apart] - alpha[apart]) / (2.0 * gamma[apart])
    tangent = np.where(zeta < 0, -1.0, 1.0) / (np.abs(zeta) + np.sqrt(1.0 + zeta * zeta))
    cosine = (1.0 / np.sqrt(1.0 + tangent * tangent))[:, None]
    sine = cosine * tangent[:, None]
    for matrix in (rows, turns):
        first, second = matrix[one], matrix[other]
        matrix[one] = cosine * first - sine * second
        matrix[other] = sine * first + cosine * second
    return len(one)


def _rounds(count: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield rounds of pairs of `count` rows: in each a row is in one pair at most, in all of them with each other."""
    players = [*range(count), *([-1] if count % 2 else [])]  # who is paired with -1 rests
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [(a, b) for a, b in zip(players[:half], players[: half - 1 : -1], strict=True) if a >= 0 and b >= 0]
        yield np.array([a for a, _ in pairs], np.intp), np.array([b for _, b in pairs], np.intp)
        players = [players[0], players[-1], *players[1:-1]]


def multiply(left: Matrix, right: Matrix) -> Matrix:
    """Return left [m, k] x right [k, n], each element summed up in the order of k."""
    columns = right.shape[1]
    wide = right if columns > 1 else np.repeat(right, 2, axis=1)  # sum_products takes two columns at least
    product = np.zeros((len(left), wide.shape[1]))
    if wide.size:
        for row, out in zip(left, product, strict=True):
            sum_products(row, wide, out)
    return product[:, :columns]


def _dots(rows: Matrix, other: Matrix) -> NDArray[np.float64]:
    """Return the inner product of each row [k, n] with another [n]."""
    total = np.zeros(len(rows))
    for begin in range(0, rows.shape[1], _COLUMNS):
        total += _sums(rows[:, begin : begin + _COLUMNS] * other[begin : begin + _COLUMNS])
    return total


def _sums(rows: Matrix) -> NDArray[np.float64]:
    """Return the sum of each row [k, n], halves added to halves: an order of additions that no processor changes."""
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        added = rows[:, :half] + rows[:, half : 2 * half]
        if rows.shape[1] % 2:
            added[:, 0] += rows[:, -1]
        rows = added
    return rows[:, 0].copy() if rows.shape[1] else np.zeros(len(rows))


def _norm(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(_dots(values[None], values)[0]))


def _total(values: NDArray[np.float64]) -> float:
    return float(_sums(values[None])[0])


def _scaled(rows: Matrix) -> tuple[Matrix, int]:
    """Return the rows divided by a power of two, so that their squares are in range, and its exponent."""
    largest = float(np.abs(rows).max(initial=0.0))
    exponent = int(np.frexp(largest)[1]) if largest else 0
    return np.ldexp(rows, -exponent), exponent


def _times(values: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """Return values times a power of two: infinite where no float holds that."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(values, exponent))
