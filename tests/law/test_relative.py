"""The half-life that is a share of the training so far, against the steps of torchtitan's EMA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from ema_cli.errors import UsageError
from ema_cli.law.events import Gap
from ema_cli.law.laws import make_law
from ema_cli.law.recipe import Recipe
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.time import Unit


def steps_of_torchtitan(clocks: Sequence[int], fraction: float) -> list[float]:
    """Fold a model after each step, as torchtitan does: what each checkpoint has that stands for the steps up to it.

    Step t keeps 2 ** (-1 / (fraction t)); the average begins with the first checkpoint.
    """
    ema = np.zeros(len(clocks))
    ema[0] = 1.0
    number = 1
    for step in range(clocks[0] + 1, clocks[-1] + 1):
        kept = 2.0 ** (-1.0 / (fraction * step))
        ema *= kept
        ema[number] += 1.0 - kept
        number += step == clocks[number]
    return list(ema)


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.5])
@pytest.mark.parametrize("clocks", [range(10_000, 20_001, 1000), (10_000, 10_100, 12_345, 12_346, 30_000)])
def test_from_10000_steps_on_these_are_torchtitans_weights(clocks: Sequence[int], fraction: float):
    """With a share f, a step keeps 2 ** (-1 / (f t)): the product over a gap goes to (t_1 / t_2) ** (ln 2 / f)."""
    law = make_law(half_life=f"{fraction * 100:g}%ba")
    expected = steps_of_torchtitan(clocks, fraction)
    weights = law.weights([Fraction(0)] * len(clocks), [Fraction(clock) for clock in clocks], bias_correction=False)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)
    assert weights[1:] == pytest.approx(expected[1:], rel=2e-3)
    assert weights[0] == pytest.approx(expected[0], rel=2e-3, abs=1e-9)


def test_early_on_a_share_is_7_percent_off_and_says_so_here():
    """At t = 100, torchtitan's discrete steps keep up to 7 % more over a long gap; by t = 10,000 it is 0.1 %."""
    for begin, most, least in ((100, 0.075, 0.05), (10_000, 1e-3, 5e-4)):
        end = 20 * begin
        kept = math.prod(2.0 ** (-1.0 / (0.05 * step)) for step in range(begin + 1, end + 1))
        ours = 1 - RelativeHalfLife(Fraction(5), Unit.BATCH).share(
            Gap(Fraction(0), 1, Fraction(end - begin)), Fraction(end)
        )
        assert ours == pytest.approx((begin / end) ** (math.log(2) / 0.05), rel=1e-9, abs=1e-15)
        log_off = math.log(kept) - math.log(begin / end) * math.log(2) / 0.05
        assert least < log_off < most


def test_the_training_is_counted_from_the_start():
    """With --start 5000ba the weights are those of a training that began there; what lies at the start has none."""
    clocks = [Fraction(clock) for clock in (5000, 6000, 7000, 9000)]
    late = Recipe(half_life="10%ba", start="5000ba").law
    early = Recipe(half_life="10%ba").law
    weights = late.weights([], clocks, bias_correction=False)
    assert weights == early.weights([], [clock - 5000 for clock in clocks], bias_correction=False)
    assert weights[0] == 0
    assert early.weights([], clocks, bias_correction=False)[0] > 0


def test_after_a_share_of_the_training_the_old_counts_about_half():
    """5 % after t = 1000 what went before keeps 1.05 ** -13.86 = 0.508; the half is exact as the share goes to 0."""
    law = RelativeHalfLife(Fraction(5), Unit.BATCH)
    assert 1 - law.share(Gap(Fraction(50), 1, Fraction(50)), Fraction(1050)) == pytest.approx(0.5084, abs=1e-4)
    tiny = RelativeHalfLife(Fraction(1, 1000), Unit.BATCH)
    gap = Gap(Fraction(1), 1, Fraction(1))
    assert 1 - tiny.share(gap, Fraction(100_001)) == pytest.approx(0.5, abs=1e-5)


def test_what_went_before_is_told_by_clocks_and_origin():
    """`share_until` and the share of one update agree, also where the average began late."""
    law = RelativeHalfLife(Fraction(20), Unit.BATCH, Fraction(100))
    assert law.share_until(150, 0, 200, 0) == pytest.approx(0.5 ** (math.log(2) / 0.2))
    assert 1 - law.share(Gap(Fraction(50), 1, Fraction(50)), Fraction(200)) == pytest.approx(
        law.share_until(150, 0, 200, 0)
    )
    assert law.share_until(50, 0, 200, 0) == 0


@pytest.mark.parametrize(
    ("text", "name", "percent"),
    [("5%ba", "5%ba", Fraction(5)), ("0.5 %tok", "0.5%tok", Fraction(1, 2)), ("100%steps", "100%ba", Fraction(100))],
)
def test_a_share_is_read_and_written_again(text: str, name: str, percent: Fraction):
    """The text is data for manifests, and the name of the law."""
    law = make_law(half_life=text)
    assert isinstance(law, RelativeHalfLife)
    assert (law.name, law.percent) == (name, percent)
    assert law.to_dict() == {"half_life": name}
    recipe = Recipe(law, start=f"7{law.unit}")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.law == RelativeHalfLife(percent, law.unit, Fraction(7))


@pytest.mark.parametrize("text", ["%ba", "5%", "0%ba", "101%ba", "-5%ba", "5%5ba", "nan%ba", "1e2%ba"])
def test_what_is_no_share_is_refused(text: str):
    """The option is named."""
    with pytest.raises(UsageError, match=r"half_life=: .* share of the training so far"):
        Recipe(half_life=text)


def test_a_start_in_another_unit_is_refused():
    """The training so far is counted from the start, in one unit."""
    with pytest.raises(UsageError, match="start=: '2ep' and half_life='5%ba' have different units"):
        Recipe(half_life="5%ba", start="2ep")


def test_no_bias_correction():
    """The first checkpoint has no excess."""
    with pytest.raises(UsageError, match="not for half-life 5%ba"):
        Recipe(half_life="5%ba", bias_correction=True)
