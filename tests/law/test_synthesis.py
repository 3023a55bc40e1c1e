"""Weights for stored averages: against profiles that are written out, event by event, and plain least squares."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from ema_cli.law.events import Events
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.law import LiveLaw
from ema_cli.law.power import Power
from ema_cli.law.profile import Moment, Stored, share_before
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.synthesis import Profiles
from ema_cli.law.time import Time, Unit


def brute_profile(law: LiveLaw | None, clocks: list[int], updates: int, interval: int = 1) -> np.ndarray:
    """Return the weight of the model at each event in an average after so many updates, by the recurrence itself."""
    events = Events(Fraction(interval))
    profile = np.zeros(len(clocks))
    for number, clock in enumerate(clocks[: updates + 1]):
        gap = events.meet(Fraction(clock))
        assert gap is not None
        share = 1.0 if number == 0 else 0.0 if law is None else law.share(gap, Fraction(clock))
        profile *= 1 - share
        profile[number] += share
    return profile


def brute_weights(profiles: np.ndarray, wanted: np.ndarray, size: float) -> np.ndarray:
    """Return the least-squares weights with sum 1, by the equations of Lagrange, in one system."""
    count = profiles.shape[1]
    ridge = (1e-5 * size) ** 2
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = profiles.T @ profiles + ridge * np.eye(count)
    system[count, count] = 0
    found = np.linalg.solve(system, [*(profiles.T @ wanted), 1.0])
    return found[:count]


def moments(clocks: list[int], stores: list[int], interval: int = 1) -> list[Moment]:
    """Return the first copy's moment and those after so many updates."""
    return [
        Moment(float(clocks[updates]), float(clocks[updates] // interval * interval), updates)
        for updates in [0, *stores]
    ]


def a_half_life(batches: float) -> HalfLife:
    return HalfLife(Time(batches, Unit.BATCH))


LAWS = [a_half_life(3.0), a_half_life(40.0), a_half_life(900.0), Smoothing(0.97), Power(0.1), Power(0.05)]
LAWS += [RelativeHalfLife(Fraction(20), Unit.BATCH), RelativeHalfLife(Fraction(5), Unit.BATCH, origin=Fraction(1))]


@pytest.mark.slow
@pytest.mark.parametrize("stores", [[10, 20, 30], [7, 8, 300, 1400], [1000], [90, 91, 92, 700, 2000]])
def test_inner_products_are_those_of_the_profiles_over_events(stores: list[int]) -> None:
    """Two profiles have the inner product that they have written out, in cells short and long."""
    clocks = list(range(1, stores[-1] + 2))
    stored = [Stored(None, 0), *(Stored(law, at) for law in LAWS for at in range(1, len(stores) + 1))]
    found = Profiles(moments(clocks, stores), stored, [])
    written = np.stack(
        [brute_profile(each.law, clocks, [0, *stores][each.moment]) for each in stored],
        axis=1,
    )
    sizes = np.linalg.norm(written, axis=0)
    assert np.abs((found.products - written.T @ written) / np.outer(sizes, sizes)).max() < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1, 5])
@pytest.mark.parametrize("law", [a_half_life(60.0), a_half_life(150.0), a_half_life(700.0), Power(0.12)])
def test_weights_are_those_of_least_squares_over_events(law: LiveLaw, interval: int) -> None:
    """What is solved cell by cell is what the whole system over all events and the mean age gives; so is its error."""
    clocks = [1, *range(5, 2000, interval)] if interval == 5 else list(range(1, 400))
    stores = [50, 100, 170, 260, len(clocks) - 1]
    kept = [a_half_life(50.0), a_half_life(200.0)]
    stored = [Stored(None, 0), *(Stored(each, at) for at in range(1, len(stores) + 1) for each in kept)]
    profiles = Profiles(moments(clocks, stores, interval), stored, [law])
    written = np.stack(
        [brute_profile(each.law, clocks, [0, *stores][each.moment], interval) for each in stored], axis=1
    )
    wanted = brute_profile(law, clocks, len(clocks) - 1, interval)
    every = profiles._nearest(law, *profiles._every)
    since = np.array([float(clocks[-1] - clock) for clock in clocks])
    ages = np.linalg.norm(wanted) / (wanted @ since) * since
    seen, aim = (np.vstack([each, ages @ each]) for each in (written, wanted[:, None]))
    expected = brute_weights(seen, aim[:, 0], np.linalg.norm(wanted))
    assert np.allclose(written @ every.weights, written @ expected, atol=2e-4 * np.abs(wanted).max())
    error = np.linalg.norm(seen @ expected - aim[:, 0]) / np.linalg.norm(wanted)
    assert every.profile == pytest.approx(error, rel=0.02, abs=1e-5)
    assert every.weights.sum() == pytest.approx(1, abs=1e-12)


def test_a_stored_average_is_made_of_itself_alone() -> None:
    """Asked for an average that is stored at the end, its weight is 1 and nothing else is read."""
    stores = [100, 200, 300]
    stored = [Stored(None, 0), *(Stored(a_half_life(h), at) for at in (1, 2, 3) for h in (25.0, 100.0))]
    found = Profiles(moments(list(range(1, 302)), stores), stored, [a_half_life(100.0)]).solve(a_half_life(100.0))
    assert found.error < 1e-6
    assert np.flatnonzero(found.weights).tolist() == [6]
    assert found.weights[6] == pytest.approx(1)


def test_the_first_copy_matters_for_a_long_a_half_life() -> None:
    """For a half-life as long as the training the first copy holds half: without it the profile is far off.

    Not as far as it might be: averages that were stored early hold some of it.
    """
    stores = [250, 500, 750, 1000]
    laws = [a_half_life(50.0), a_half_life(200.0)]
    ours = [Stored(law, at) for at in range(1, 5) for law in laws]
    at = moments(list(range(1, 1002)), stores)
    wanted = a_half_life(1000.0)
    without = Profiles(at, ours, [wanted]).solve(wanted)
    found = Profiles(at, [Stored(None, 0), *ours], [wanted]).solve(wanted)
    assert found.error < 0.005
    assert without.error > 10 * found.error


@pytest.mark.parametrize("half_life", [0.0, float("inf")])
def test_the_limits_of_the_half_life(half_life: float) -> None:
    """An infinite half-life is the first copy; one of 0 is the newest model, which averages of others cannot make."""
    stores = [40, 80]
    stored = [Stored(None, 0), *(Stored(a_half_life(10.0), at) for at in (1, 2))]
    law = a_half_life(half_life)
    found = Profiles(moments(list(range(1, 82)), stores), stored, [law]).solve(law)
    if half_life:
        assert found.error < 1e-9
        assert found.weights.tolist() == pytest.approx([1, 0, 0])
    else:
        assert found.error > 0.5


@pytest.mark.parametrize(
    "law",
    [
        None,
        a_half_life(30.0),
        Smoothing(0.95),
        Power(0.2),
        a_half_life(0.0),
        RelativeHalfLife(Fraction(30), Unit.BATCH),
    ],
)
def test_shares_of_the_training_are_sums_of_the_profile(law: LiveLaw | None) -> None:
    """How much an average owes to the training up to a clock is the sum of its profile up to there."""
    clocks = list(range(1, 201))
    at = moments(clocks, [100, 199])
    profile = brute_profile(law, clocks, 199)
    for clock in (0, 1, 50, 101, 150, 200):
        assert share_before(law, clock, at, 2) == pytest.approx(profile[: max(clock, 0)].sum(), abs=1e-9)
