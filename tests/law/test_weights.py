"""From gaps to weights, against the recurrence run step by step in 60 digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.law.power import Power
from ema_cli.law.weights import (
    cosine_mean,
    decay_weights,
    half_life_weights,
    inverse_square_root_weights,
    linear_mean,
    power_weights,
    smoothing_weights,
    square_root_mean,
    uniform_weights,
)

GAPS = st.lists(st.fractions(Fraction(1, 100), 10**6, max_denominator=100), min_size=1, max_size=12)
HALF_LIVES = st.fractions(Fraction(1, 10), 10**7, max_denominator=10)


def middle(gaps: Sequence[Fraction]) -> Fraction:
    """The median of the gaps between checkpoints, by counting: the mean of the middle two if they are even."""
    ordered = sorted(gaps)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def recurrence(shares: Sequence[Decimal], first: Decimal) -> list[float]:
    """Run ema = s * ema + (1 - s) * model on symbols: entry k is the coefficient of model k.

    `shares` are the s_1 ... s_n, `first` is what model 0 enters with.
    """
    with localcontext() as context:
        context.prec = 60
        ema = [first]
        for share in shares:
            ema = [coefficient * share for coefficient in ema] + [1 - share]
        total = sum(ema)
        return [float(coefficient / total) for coefficient in ema]


def shares_of(gaps: Sequence[Fraction], half_life: Fraction) -> list[Decimal]:
    with localcontext() as context:
        context.prec = 60
        rate = Decimal(2).ln() * half_life.denominator / half_life.numerator
        return [(-rate * gap.numerator / gap.denominator).exp() for gap in gaps]


def after_first(gaps: Sequence[Fraction]) -> list[Fraction]:
    """What the functions take: the gap before the first checkpoint is there, and not used."""
    return [Fraction(12345), *gaps]


@pytest.mark.slow
@given(gaps=GAPS, half_life=HALF_LIVES)
def test_weights_are_the_unrolled_recurrence(gaps: list[Fraction], half_life: Fraction):
    """Folding one checkpoint after the other gives each the weight that the plan gives it."""
    weights = half_life_weights(after_first(gaps), half_life, bias_correction=False)
    assert weights == pytest.approx(recurrence(shares_of(gaps, half_life), Decimal(1)), rel=1e-9, abs=1e-300)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)


@pytest.mark.slow
@given(gaps=GAPS, half_life=HALF_LIVES)
def test_bias_correction_starts_from_zero_as_adam_does(gaps: list[Fraction], half_life: Fraction):
    """The first enters with 1 - s_0, s_0 of the median gap, and the weights are renormalised."""
    weights = half_life_weights(after_first(gaps), half_life, bias_correction=True)
    (s_0,) = shares_of([middle(gaps)], half_life)
    with localcontext() as context:
        context.prec = 60
        first = 1 - s_0
    assert weights == pytest.approx(recurrence(shares_of(gaps, half_life), first), rel=1e-9, abs=1e-300)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)


@given(
    updates=st.lists(st.integers(1, 50).map(Fraction), min_size=1, max_size=12),
    smoothing=st.integers(0, 1000).map(lambda n: n / 1000),
    bias_correction=st.booleans(),
)
def test_a_smoothing_is_kept_once_per_update(updates: list[Fraction], smoothing: float, bias_correction: bool):
    """A checkpoint that several updates have passed keeps smoothing ** updates of what was there."""
    weights = smoothing_weights(after_first(updates), smoothing, bias_correction=bias_correction)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)
    if bias_correction and smoothing == 1:
        total = middle(updates) + sum(updates)
        assert weights == pytest.approx([float(gap / total) for gap in (middle(updates), *updates)], rel=1e-14)
        return
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(smoothing)
        # Word by word: `u` updates with the same model, one at a time.
        ema = [1 - exact ** (Decimal(middle(updates).numerator) / middle(updates).denominator)]
        ema = ema if bias_correction else [Decimal(1)]
        for count in updates:
            ema.append(Decimal(0))
            for _ in range(int(count)):
                ema = [coefficient * exact for coefficient in ema]
                ema[-1] += 1 - exact
        expected = [float(coefficient / sum(ema)) for coefficient in ema]
    assert weights == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.slow
@given(gaps=GAPS, half_life=HALF_LIVES, scale=st.fractions(Fraction(1, 1000), 1000), bias_correction=st.booleans())
def test_only_the_ratio_of_gap_and_half_life_counts(
    gaps: list[Fraction], half_life: Fraction, scale: Fraction, bias_correction: bool
):
    """Counting in samples instead of batches changes no weight at all: the ratios are exact."""
    weights = half_life_weights(after_first(gaps), half_life, bias_correction=bias_correction)
    scaled = half_life_weights(
        after_first([gap * scale for gap in gaps]), half_life * scale, bias_correction=bias_correction
    )
    assert scaled == weights


@pytest.mark.slow
@given(gaps=GAPS, half_life=HALF_LIVES, at=st.integers(0, 11))
def test_a_checkpoint_that_is_missing_leaves_the_older_weights_as_they_are(
    gaps: list[Fraction], half_life: Fraction, at: int
):
    """Two gaps made one: the newer checkpoint takes over the weight of the missing one, nobody else's changes."""
    gaps = [*gaps, Fraction(3)]
    at %= len(gaps) - 1
    whole = half_life_weights(after_first(gaps), half_life, bias_correction=False)
    merged = [*gaps[:at], gaps[at] + gaps[at + 1], *gaps[at + 2 :]]
    weights = half_life_weights(after_first(merged), half_life, bias_correction=False)
    expected = [*whole[: at + 1], whole[at + 1] + whole[at + 2], *whole[at + 3 :]]
    assert weights == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_half_life_0_is_the_newest(bias_correction: bool):
    """Nothing old is kept, bias-corrected or not."""
    gaps = [Fraction(0), Fraction(1), Fraction(5)]
    assert half_life_weights(gaps, Fraction(0), bias_correction=bias_correction) == [0.0, 0.0, 1.0]
    assert smoothing_weights(gaps, 0.0, bias_correction=bias_correction) == [0.0, 0.0, 1.0]


def test_an_infinite_half_life_is_the_first():
    """Nothing new is admitted."""
    gaps = [Fraction(0), Fraction(1), Fraction(5)]
    assert half_life_weights(gaps, math.inf, bias_correction=False) == [1.0, 0.0, 0.0]
    assert smoothing_weights(gaps, 1.0, bias_correction=False) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("half_life", [Fraction(0), Fraction(50), math.inf])
def test_one_checkpoint_has_weight_1(half_life: Fraction | float, bias_correction: bool):
    """Alone, it is the average, bias correction or not."""
    assert half_life_weights([Fraction(7)], half_life, bias_correction=bias_correction) == [1.0]


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.9, 1.0])
def test_one_checkpoint_has_weight_1_with_a_smoothing(smoothing: float, bias_correction: bool):
    """The same in the other form of the law."""
    assert smoothing_weights([Fraction(0)], smoothing, bias_correction=bias_correction) == [1.0]


def test_bias_correction_by_hand():
    """Two checkpoints one half-life apart: 1/4 and 1/2, renormalised to 1/3 and 2/3."""
    gaps = [Fraction(0), Fraction(10)]
    assert half_life_weights(gaps, Fraction(10), bias_correction=True) == pytest.approx([1 / 3, 2 / 3], rel=1e-15)
    assert half_life_weights(gaps, Fraction(10), bias_correction=False) == pytest.approx([1 / 2, 1 / 2], rel=1e-15)


@pytest.mark.parametrize(
    ("gaps", "median"),
    [([1, 5, 100], 5), ([100, 1, 5], 5), ([1, 5], 3), ([100, 1, 5, 10], Fraction(15, 2)), ([7], 7)],
)
def test_the_first_gap_is_the_median_of_the_others(gaps: list[int], median: Fraction):
    """Odd counts take the middle one, even ones the mean of the middle two: seen at an infinite half-life."""
    weights = half_life_weights([Fraction(0), *map(Fraction, gaps)], math.inf, bias_correction=True)
    assert weights == pytest.approx([float(gap / (median + sum(gaps))) for gap in (Fraction(median), *gaps)], rel=1e-15)


@pytest.mark.slow
@given(gaps=GAPS)
def test_the_limit_at_an_infinite_half_life_is_what_long_ones_approach(gaps: list[Fraction]):
    """With bias correction, weights go to the share of the gaps: a half-life of 1e30 cannot be told from it."""
    limit = half_life_weights(after_first(gaps), math.inf, bias_correction=True)
    assert limit == pytest.approx([float(g / (middle(gaps) + sum(gaps))) for g in (middle(gaps), *gaps)], rel=1e-14)
    assert half_life_weights(after_first(gaps), Fraction(10**30), bias_correction=True) == pytest.approx(
        limit, rel=1e-9
    )


def test_the_limit_at_smoothing_1_is_what_almost_1_approaches():
    """The updates' own shares, and 0.9999999 comes close to them."""
    updates = [Fraction(0), Fraction(1), Fraction(3), Fraction(2)]
    limit = smoothing_weights(updates, 1.0, bias_correction=True)
    assert limit == pytest.approx([2 / 8, 1 / 8, 3 / 8, 2 / 8], rel=1e-15)
    assert smoothing_weights(updates, 0.9999999, bias_correction=True) == pytest.approx(limit, rel=1e-5)


def test_very_many_checkpoints_still_sum_to_1():
    """Ten thousand small weights lose nothing."""
    weights = half_life_weights([Fraction(1)] * 10_000, Fraction(3_000), bias_correction=True)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    assert weights[-1] / weights[-3_001] == pytest.approx(2, rel=1e-9)


CLOCKS = st.lists(st.integers(1, 1000), min_size=1, max_size=12, unique=True).map(
    lambda values: [Fraction(value) for value in sorted(values)]
)


@pytest.mark.slow
@given(clocks=CLOCKS, sigma_rel=st.sampled_from([0.03, 0.05, 0.1, 0.2, 0.28]))
def test_power_weights_are_integrals_of_the_profile(clocks: list[Fraction], sigma_rel: float):
    """Each checkpoint has the integral of (g + 1) / T^(g + 1) t^g over the training that it stands for."""
    gamma = Power(sigma_rel).gamma
    end = float(clocks[-1])
    edges = [0.0, *map(float, clocks)]
    expected = []
    for begin, until in pairwise(edges):
        middles = begin + (until - begin) * (np.arange(20_000) + 0.5) / 20_000
        expected.append(np.mean((gamma + 1) / end * (middles / end) ** gamma) * (until - begin))
    weights = power_weights(clocks, gamma)
    assert weights == pytest.approx(expected, abs=1e-6)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.15, 0.25, 0.288])
def test_the_exponent_of_a_width(sigma_rel: float):
    """gamma is the positive root of the cubic to which equation 126 of Karras et al. brings equation 123."""
    roots = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])
    assert Power(sigma_rel).gamma == pytest.approx(float(roots.real.max()), rel=1e-9)


def test_the_widest_power_profile_is_uniform():
    """With a width of 12 ** -0.5 gamma is 0, and each checkpoint has the share of the training it stands for."""
    assert Power(12**-0.5).gamma == pytest.approx(0, abs=1e-6)
    assert power_weights([Fraction(10), Fraction(20), Fraction(40)], 0.0) == pytest.approx([0.25, 0.25, 0.5])


def test_uniform_weights_follow_the_clocks():
    """Evenly spaced checkpoints have equal weights; one that stands for twice the training has twice the weight."""
    assert uniform_weights([Fraction(0), *[Fraction(7)] * 4]) == pytest.approx([0.2] * 5)
    assert uniform_weights([Fraction(0), Fraction(10), Fraction(10), Fraction(20)]) == pytest.approx(
        [0.2, 0.2, 0.2, 0.4]
    )
    assert uniform_weights([Fraction(0)]) == [1.0]


SCHEDULES = {
    "linear": (lambda clocks: decay_weights(clocks, linear_mean), lambda x, first, length: 1 - x),
    "1-sqrt": (lambda clocks: decay_weights(clocks, square_root_mean), lambda x, first, length: 1 - np.sqrt(x)),
    "cosine": (
        lambda clocks: decay_weights(clocks, cosine_mean),
        lambda x, first, length: (1 + np.cos(np.pi * x)) / 2,
    ),
    "inverse-sqrt": (inverse_square_root_weights, lambda x, first, length: np.sqrt(first / (first + x * length))),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(clocks=CLOCKS.filter(lambda clocks: len(clocks) > 1 and clocks[0] > 0))
def test_decay_weights_emulate_a_falling_learning_rate(schedule: str, clocks: list[Fraction]):
    """An update has in the average the mean factor that the schedule gives it between the checkpoints around it."""
    law, rate = SCHEDULES[schedule]
    weights = law(clocks)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    assert min(weights) >= -1e-15
    first, length = float(clocks[0]), float(clocks[-1] - clocks[0])
    for number, (begin, end) in enumerate(pairwise(map(float, clocks))):
        middles = begin + (end - begin) * (np.arange(20_000) + 0.5) / 20_000
        # Updates between checkpoints k and k + 1 are in checkpoints k + 1, k + 2, ...
        mean = np.mean(rate((middles - first) / length, first, length))
        assert math.fsum(weights[number + 1 :]) == pytest.approx(mean, abs=1e-5)


def test_linear_weights_of_evenly_spaced_checkpoints():
    """The ends have half the weight of the others: the trapezoid rule."""
    clocks = [Fraction(value) for value in (100, 200, 300, 400, 500)]
    assert decay_weights(clocks, linear_mean) == pytest.approx([0.125, 0.25, 0.25, 0.25, 0.125])
    assert decay_weights(clocks[:1], square_root_mean) == [1.0]


def test_an_inverse_square_root_leaves_the_rest_to_the_newest():
    """From 100 to 400 the rate falls to a half, never to 0: what is left at the end is the newest checkpoint's."""
    weights = inverse_square_root_weights([Fraction(100), Fraction(225), Fraction(400)])
    assert weights == pytest.approx([1 - 2 / 2.5, 2 / 2.5 - 2 / 3.5, 2 / 3.5], abs=1e-15)
    assert inverse_square_root_weights([Fraction(7)]) == [1.0]
