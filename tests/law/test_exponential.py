"""The exponential laws: what each update takes in, and which are refused or equal."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.events import Gap
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.time import Time, Unit


def test_after_one_half_life_the_old_average_counts_half():
    """After one half-life the old average counts half, after two a quarter; 0 keeps nothing, infinity all."""
    gap = Gap(Fraction(10), 2, Fraction(11))
    assert HalfLife(Time.parse("10ba")).share(gap, Fraction(50)) == pytest.approx(0.5)
    assert HalfLife(Time.parse("5ba")).share(gap, Fraction(50)) == pytest.approx(0.75)
    assert HalfLife(Time.parse("0ba")).share(gap, Fraction(50)) == 1
    assert HalfLife(Time.parse("infba")).share(gap, Fraction(50)) == 0


def test_smoothing_is_per_update():
    """Two updates at once keep the square of what one keeps."""
    assert Smoothing(0.9).share(Gap(Fraction(10), 2, Fraction(11)), Fraction(50)) == pytest.approx(1 - 0.81)


def test_equal_laws_are_one_key():
    """Half-lives are equal as numbers, exact or not."""
    assert len({HalfLife(Time(50.0, Unit.BATCH)), HalfLife(Time.parse("50ba"))}) == 1
    assert HalfLife(Time.parse("50ba")) != HalfLife(Time.parse("50ep"))


@pytest.mark.parametrize("value", [-0.1, 1.0000001, math.nan, math.inf])
def test_a_smoothing_outside_of_0_to_1_is_refused(value: float):
    """The option is named, with its value."""
    with pytest.raises(UsageError, match=r"is not in \[0, 1\]$") as raised:
        Smoothing(value)
    assert raised.value.option == "smoothing"
