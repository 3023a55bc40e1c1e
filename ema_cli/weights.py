"""From the gaps between checkpoints to their weights: every way to average is a vector that sums to 1.

No torch, no numpy: plain float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from ema_cli import units

Gaps = Sequence[Fraction] | Sequence[float]


def half_life_weights(gaps: Gaps, half_life: Fraction | float, *, bias_correction: bool) -> list[float]:
    """Return the weights of checkpoints `gaps` apart (the first gap is not used), in float64, with sum 1.

    w_0 = s_1 ... s_n and w_k = (1 - s_k) s_k+1 ... s_n, with s_k = 2 ** -(gap_k / half_life), Composer's law.
    With `bias_correction` the average starts from zero, as in Adam: the first checkpoint enters with 1 - s_0,
    s_0 of the median gap, and the weights are renormalised.
    """
    kept = [units.smoothing(gap, half_life) for gap in gaps]
    entered = [units.admitted(gap, half_life) for gap in gaps]
    if bias_correction and half_life == math.inf:
        return _proportional(gaps)
    return _unroll(kept, entered, units.admitted(_median_gap(gaps), half_life) if bias_correction else None)


def smoothing_weights(updates: Gaps, smoothing: float, *, bias_correction: bool) -> list[float]:
    """Return the weights of checkpoints that are `updates` apart, each update keeping the share `smoothing`."""
    if bias_correction and smoothing == 1:
        return _proportional(updates)
    kept = [smoothing ** float(gap) for gap in updates]
    first = 1 - smoothing ** float(_median_gap(updates)) if bias_correction else None
    return _unroll(kept, [1 - share for share in kept], first)


def _unroll(kept: Sequence[float], entered: Sequence[float], first: float | None) -> list[float]:
    """Return each checkpoint's share after the last update; `first` is what the first enters with, None for 1."""
    weights = []
    share = 1.0
    for smoothed, own in zip(reversed(kept[1:]), reversed(entered[1:]), strict=True):
        weights.append(share * own)
        share *= smoothed
    weights.append(share * (1.0 if first is None else first))
    weights.reverse()
    if first is not None:
        total = math.fsum(weights)
        weights = [weight / total for weight in weights] if total else [*([0.0] * (len(weights) - 1)), 1.0]
    return weights


def _proportional(gaps: Gaps) -> list[float]:
    """Return the limit of the bias-corrected weights as the smoothing goes to 1: the gaps themselves."""
    shares = [_median_gap(gaps), *gaps[1:]]
    total = sum(map(Fraction, shares), Fraction(0))
    return [float(share / total) for share in shares]


def _median_gap(gaps: Gaps) -> Fraction:
    ordered = sorted(map(Fraction, gaps[1:])) or [Fraction(1)]
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
