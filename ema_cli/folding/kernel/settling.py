"""Settle what is not finite: mend what only looks so, keep infinities that all checkpoints share, name the rest.

An average can be NaN or infinite although it should not be. With weights 1/2 and 1/2, in float32:

    element          a        b       c       d
    older          3e38    -inf     nan   70000
    newer         -3e38    -inf       1   70000
    as summed       inf     nan     nan   70000     rule 2: newer + 1/2 (older - newer)
    settled           0    -inf     nan   70000
    reported          -       -   older   average   if the target is F16

a: 6e38 overflows, the average does not: the sum is made in float64. b: -inf less -inf is NaN, but the infinity is
equal in all checkpoints, as in an attention mask: it is kept. c: a NaN in one of them stays. d: every value is finite,
and only the average is too large for what it is stored as. A checkpoint of weight 0 does not count, though it may have
spoilt a sum: 0 times infinity is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ema_cli.dataclass import dataclass
from ema_cli.folding.kernel import NOBODY, sum_to_1
from ema_cli.folding.kernel.floats import Floats
from ema_cli.folding.kernel.products import keep_zeros


def settle(
    load: Callable[[int], Floats], weights: Sequence[float], average: Floats, limit: float, *, plain: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Correct in place the elements of an average that are not below `limit`.

    Args:
        load: returns the n values of a checkpoint, by its number.
        weights: of each checkpoint, the oldest first.
        average: [n], the sum as rules 2 to 4 make it; afterwards with the values of IEEE arithmetic in what is wrong.
        limit: the magnitude from which on the target cannot hold a number.
        plain: whether the sum is that of rule 3: of values, not of differences to the newest.

    Returns:
        The indices of elements that are wrong, [m]; and for each the oldest checkpoint in which it is not finite,
        `NOBODY` where all are.
    """
    suspects = np.flatnonzero(~(np.abs(average) < limit))
    entering = [number for number, weight in enumerate(weights) if weight]
    evidence = _look_again(load, weights, entering, suspects, plain=plain)
    normal = sum_to_1(weights)
    settled = evidence.newest if normal and len(entering) == 1 else _settled(evidence, limit, normal=normal)
    average[suspects] = settled
    shared_infinity = evidence.equal & np.isinf(evidence.newest)
    wrong = ~shared_infinity & ~(np.abs(settled) < limit)
    return suspects[wrong], evidence.culprits[wrong]


@dataclass(slots=True)
class _Evidence:
    """What the checkpoints hold at m suspect elements.

    newest [m]: the values in the newest checkpoint that enters.
    again [m]: the sum made once more, of the checkpoints that enter only.
    exact [m]: the same in float64, as a plain sum.
    equal [m]: whether all values are equal. NaN is not equal to itself.
    culprits [m]: the oldest checkpoint in which the value is not finite, or `NOBODY`.
    """

    newest: Floats
    again: Floats
    exact: NDArray[np.float64]
    equal: NDArray[np.bool_]
    culprits: NDArray[np.intp]


def _look_again(
    load: Callable[[int], Floats],
    weights: Sequence[float],
    entering: Sequence[int],
    suspects: NDArray[np.intp],
    *,
    plain: bool,
) -> _Evidence:
    """Read the suspect elements of all checkpoints that enter, from the newest to the oldest, and sum them up anew."""
    newest = load(entering[-1])[suspects]
    count = len(suspects)
    evidence = _Evidence(
        newest=newest,
        again=np.zeros_like(newest),
        exact=np.zeros(count),
        equal=np.ones(count, dtype=bool),
        culprits=np.full(count, NOBODY),
    )
    for number in reversed(entering):
        values = newest if number == entering[-1] else load(number)[suspects]
        evidence.equal &= values == newest
        evidence.culprits[~np.isfinite(values)] = number
        evidence.exact += weights[number] * values.astype(np.float64)
        evidence.again += (values if plain else values - newest) * values.dtype.type(weights[number])
    if not plain:
        evidence.again += newest
    keep_zeros(evidence.again, newest)
    return evidence


def _settled(evidence: _Evidence, limit: float, *, normal: bool) -> Floats:
    """Return the values that the elements should have; `normal`: the weights sum to 1."""
    settled = evidence.again
    overflowed = ~(np.abs(settled) < limit)
    settled[overflowed] = evidence.exact[overflowed].astype(settled.dtype)
    kept = evidence.equal if normal else evidence.equal & np.isinf(evidence.newest)
    settled[kept] = evidence.newest[kept]
    settled[np.isnan(settled)] = np.nan  # one NaN, whichever have met
    return settled
