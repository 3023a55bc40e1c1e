"""From the gaps between checkpoints to their weights: every way to average is a vector that sums to 1.

No torch, no numpy: plain float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from ema_cli.errors import UsageError, option
from ema_cli.law.decay import admitted, kept, power_share

Gaps = Sequence[Fraction] | Sequence[float]


def half_life_weights(gaps: Gaps, half_life: Fraction | float, *, bias_correction: bool) -> list[float]:
    """Return the weights of checkpoints `gaps` apart (the first gap is not used), in float64, with sum 1.

    w_0 = s_1 ... s_n and w_k = (1 - s_k) s_k+1 ... s_n, with s_k = 2 ** -(gap_k / half_life), Composer's law.
    With `bias_correction` the average starts from zero, as in Adam: the first checkpoint enters with 1 - s_0,
    s_0 of the median gap, and the weights are renormalised.
    """
    kept_shares = [kept(gap, half_life) for gap in gaps]
    entered = [admitted(gap, half_life) for gap in gaps]
    if bias_correction and half_life == math.inf:
        return _proportional(gaps)
    return _unroll(kept_shares, entered, admitted(_median_gap(gaps), half_life) if bias_correction else None)


def smoothing_weights(updates: Gaps, smoothing: float, *, bias_correction: bool) -> list[float]:
    """Return the weights of checkpoints that are `updates` apart, each update keeping the share `smoothing`."""
    if bias_correction and smoothing == 1:
        return _proportional(updates)
    kept_shares = [smoothing ** float(gap) for gap in updates]
    first = 1 - smoothing ** float(_median_gap(updates)) if bias_correction else None
    return _unroll(kept_shares, [1 - share for share in kept_shares], first)


def power_weights(clocks: Sequence[Fraction], gamma: float) -> list[float]:
    """Return the weights of checkpoints at these clocks by the power-function profile of Karras et al. 2024.

    Each stands for the training since the one before it, and has the share (gamma + 1) / T^(gamma + 1) x the integral
    of t^gamma over that (equation 121); the first stands for all the training up to it.
    """
    entered = [1.0, *(power_share(before, clock, gamma) for before, clock in pairwise(clocks))]
    return _unroll([1 - share for share in entered], entered, None)


def uniform_weights(gaps: Gaps) -> list[float]:
    """Return weights in proportion to the training that each checkpoint stands for: equal ones if evenly spaced.

    The first stands for a median gap.
    """
    return _proportional(gaps)


def decay_weights(clocks: Sequence[Fraction], mean: Callable[[float, float], float]) -> list[float]:
    """Return the weights that emulate a learning rate that falls from 1 between the first and the last clock.

    An average with weights c gives an update between checkpoints k - 1 and k the factor c_k + c_k+1 + ...: what the
    learning rate would have given it (WSM, arXiv 2507.17634). So c_k = W_k - W_k+1, with W_k the mean of the schedule
    between the two; W_0 = 1 and W_n+1 = 0.

    mean: gives the mean of the schedule between two places, of which 0 is the first clock and 1 the last.
    """
    first, length = clocks[0], clocks[-1] - clocks[0]
    if not length:
        return [1.0]
    at = [float((clock - first) / length) for clock in clocks]
    means = [mean(begin, end) for begin, end in pairwise(at)]
    return [before - after for before, after in pairwise([1.0, *means, 0.0])]


def linear_mean(begin: float, end: float) -> float:
    """Return the mean of 1 - x."""
    return 1 - (math.pow(end, 2.0) - math.pow(begin, 2.0)) / 2.0 / (end - begin)


def square_root_mean(begin: float, end: float) -> float:
    """Return the mean of 1 - sqrt(x)."""
    return 1 - (math.pow(end, 1.5) - math.pow(begin, 1.5)) / 1.5 / (end - begin)


def cosine_mean(begin: float, end: float) -> float:
    """Return the mean of (1 + cos(pi x)) / 2, without the cancellation of two sines of nearby places."""
    half = math.pi * (end - begin) / 2
    return 0.5 + math.cos(math.pi * (begin + end) / 2) * math.sin(half) / half / 2


def inverse_square_root_weights(clocks: Sequence[Fraction]) -> list[float]:
    """Return the weights that emulate a learning rate that falls as sqrt(t_0 / t), t the clock and t_0 the first one.

    The schedule is that of Vaswani et al. 2017 (arXiv 1706.03762) after its warm-up; the newest checkpoint has what the
    schedule has not fallen by. Its mean between two clocks is 2 sqrt(t_0) / (sqrt(a) + sqrt(b)). t_0 is above 0.
    """
    first = clocks[0]

    def mean(begin: float, end: float) -> float:
        roots = [math.sqrt(1 + place * float((clocks[-1] - first) / first)) for place in (begin, end)]
        return 2 / math.fsum(roots)

    return decay_weights(clocks, mean)


def bema_weights(
    clocks: Sequence[Fraction], *, lag: float, multiplier: float, bias_power: float, ema_power: float
) -> list[float]:
    """Return the weights of a base and of checkpoints after it, by BEMA (arXiv 2508.00180, algorithm 1).

    alpha_t (newest - base) + EMA_t, where EMA_t = (1 - beta_t) EMA_before + beta_t checkpoint begins with the base;
    alpha_t = (lag + multiplier t) ** -bias_power, beta_t = (lag + multiplier t) ** -ema_power, and t is the clock. What
    is added for the newest is taken from the base, so that all sum to 1.

    Raises:
        UsageError: where beta_t or alpha_t would be above 1.
    """
    ages = [lag + multiplier * float(clock) for clock in clocks[1:]]
    if min(ages, default=1.0) < 1:
        raise UsageError(
            f"{option('lag')} and {option('multiplier')} give {min(ages):g}, and a share above 1 of the newest",
            hint="lag + multiplier x batches is at least 1",
        )
    entered = [1.0, *(math.pow(age, -ema_power) for age in ages)]
    unrolled = _unroll([1 - share for share in entered], entered, None)
    if ages:
        alpha = math.pow(ages[-1], -bias_power)
        unrolled[0] -= alpha
        unrolled[-1] += alpha
    return unrolled


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
