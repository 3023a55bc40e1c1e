"""The rounding of stored averages: against averages that are kept in float32 and in float64 side by side."""

from __future__ import annotations

import numpy as np
import pytest

from ema_cli.law.events import Gap
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.law import LiveLaw
from ema_cli.law.power import Power
from ema_cli.law.rounding import Measured, kept, spread_of
from ema_cli.law.time import Time, Unit

STEPS = 400


def half_life(batches: float) -> HalfLife:
    """Return the law of a half-life in batches."""
    return HalfLife(Time(batches, Unit.BATCH))


def share(law: LiveLaw, step: int) -> float:
    """Return the share of the model in the average at a step."""
    from fractions import Fraction

    return law.share(Gap(Fraction(1), 1, Fraction(1)), Fraction(step))


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [half_life(3.0), half_life(25.0), half_life(150.0), Smoothing(0.95), Power(0.1)], ids=str
)
def test_the_error_of_an_average_is_that_of_float32(law: LiveLaw) -> None:
    """An average that each update rounds to float32 is off by what is told, within a factor of 1.6."""
    random = np.random.default_rng(5)
    base = random.normal(size=20_000)
    exact = narrow = np.zeros(0)
    for step in range(1, STEPS + 1):
        model = (base + 0.01 * random.normal(size=base.size)).astype(np.float32)
        if step == 1:
            exact, narrow = model.astype(np.float64), model
            continue
        weight = share(law, step)
        exact = exact + weight * (model.astype(np.float64) - exact)
        narrow = (narrow.astype(np.float64) + weight * (model.astype(np.float64) - narrow)).astype(np.float32)
    error = float(np.linalg.norm(narrow - exact))
    told = Measured(law, STEPS, STEPS - 1, 1.0, 2.0**-24, float(np.linalg.norm(exact)), 1.0).error
    assert told / 1.6 < error < told * 1.6


@pytest.mark.parametrize("law", [half_life(3.0), half_life(60.0), Smoothing(0.95), Power(0.1)], ids=str)
def test_mean_age_and_squares_are_sums_over_updates(law: LiveLaw) -> None:
    """The share that is kept since each update, and its square, added up one by one."""
    since = [1.0]
    for step in range(STEPS, 1, -1):
        since.append(since[-1] * (1 - share(law, step)))
    found = kept(law, 1.0, STEPS)
    assert found.sum == pytest.approx(sum(since), rel=0.05)
    assert found.squares == pytest.approx(sum(each**2 for each in since), rel=0.05)


def test_what_averaging_changes_is_not_taken_for_more_than_it_can_be() -> None:
    """A shorter average is nearer to the model in proportion, a longer one at least as far as those that are stored."""
    stored = [
        Measured(half_life(each), 400.0, 399, 1.0, 2.0**-24, 100.0, far) for each, far in ((25.0, 1.0), (100.0, 3.0))
    ]
    assert spread_of(half_life(25.0), stored) == pytest.approx(1.0, rel=0.01)
    assert spread_of(half_life(5.0), stored) == pytest.approx(0.2, rel=0.15)
    assert spread_of(half_life(1000.0), stored) == pytest.approx(3.0, rel=0.01)
    resting = [Measured(half_life(25.0), 400.0, 399, 1.0, 2.0**-24, 100.0, 0.0)]
    assert spread_of(half_life(25.0), resting) == pytest.approx(100 * resting[0].error, rel=0.01)
