"""The shares that laws give, against 60 digits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.law.decay import admitted, kept


def exact_share(elapsed: Fraction, half_life: Fraction) -> Decimal:
    """Composer's form of the law, exp(-log(2) * elapsed / half_life), in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        ratio = Decimal(elapsed.numerator * half_life.denominator) / (elapsed.denominator * half_life.numerator)
        return (-Decimal(2).ln() * ratio).exp()


@given(
    elapsed=st.fractions(Fraction(1, 1000), 10**6, max_denominator=1000),
    half_life=st.fractions(Fraction(1, 100), 10**7, max_denominator=100),
)
def test_smoothing_is_composers_law(elapsed: Fraction, half_life: Fraction):
    """2 ** -(elapsed / half_life) is exp(-log(2) * elapsed / half_life), and what is admitted is the rest."""
    exact = exact_share(elapsed, half_life)
    # The exponent is rounded once: its error, 2**-53 of it, is the relative error of the power.
    rounding = 2**-52 * (1 + float(elapsed / half_life))
    assert kept(elapsed, half_life) == pytest.approx(float(exact), rel=rounding, abs=1e-307)
    assert admitted(elapsed, half_life) == pytest.approx(float(1 - exact), rel=4 * 2**-52)


def test_after_one_half_life_half_is_left():
    """The word is meant literally: 1/2 after one, 1/4 after two, 1/8 after three."""
    fifty = Fraction(50)
    assert [kept(fifty * n, fifty) for n in (1, 2, 3)] == [0.5, 0.25, 0.125]
    assert [admitted(fifty * n, fifty) for n in (1, 2, 3)] == pytest.approx([0.5, 0.75, 0.875], rel=1e-15)


def test_a_missing_checkpoint_keeps_the_half_life_true():
    """A gap of two intervals smooths like two updates."""
    once = kept(Fraction(10), Fraction(50))
    assert kept(Fraction(20), Fraction(50)) == pytest.approx(once**2, rel=1e-15)


def test_half_life_0_keeps_nothing_and_an_infinite_one_everything():
    """Composer divides by zero and overflows here; its documentation promises newest and first."""
    assert (kept(Fraction(1), Fraction(0)), admitted(Fraction(1), Fraction(0))) == (0.0, 1.0)
    assert (kept(Fraction(1), math.inf), admitted(Fraction(1), math.inf)) == (1.0, 0.0)


def test_a_half_life_far_above_the_gap_still_admits_its_share():
    """1 - smoothing is not rounded to 0: 1ba at 1e18ba admits log(2) / 1e18."""
    assert 1 - kept(Fraction(1), Fraction(10**18)) == 0
    assert admitted(Fraction(1), Fraction(10**18)) == pytest.approx(math.log(2) / 1e18, rel=1e-15)


def test_a_gap_far_above_the_half_life_does_not_overflow():
    """The extremes that a time may have give 0 and 1."""
    assert kept(Fraction(10**70), Fraction(1, 10**70)) == 0.0
    assert admitted(Fraction(10**70), Fraction(1, 10**70)) == 1.0
