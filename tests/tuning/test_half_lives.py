"""The search: a grid at equal ratios, then the least of a parabola around the best, until nothing is left between."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import UsageError
from ema_cli.law.time import Time, Unit
from ema_cli.tuning.half_lives import LEAST_STEP, Range, check_half_lives


def ba(value: float | Fraction) -> Time:
    return Time(Fraction(value), Unit.BATCH)


def search(wanted: Range, metric: Callable[[float], float]) -> dict[Time, float]:
    """Return what is evaluated, in order, with its score."""
    scores = {time: metric(float(time.value)) for time in wanted.grid()}
    while (following := wanted.refined(scores)) is not None:
        assert following not in scores
        scores[following] = metric(float(following.value))
    return scores


def test_the_grid_has_equal_ratios_and_both_ends():
    """Half-lives are alike on a logarithmic scale."""
    assert Range(ba(100), ba(10000), 5).grid() == [ba(100), ba(464), ba(2150), ba(10000)]
    assert Range(ba(1), ba(16), 3).grid() == [ba(1), ba(4), ba(16)]


@pytest.mark.parametrize(("tries", "times"), [(1, [400]), (2, [100, 1600])])
def test_few_tries_are_a_grid_of_as_many(tries: int, times: list[int]):
    """One is the geometric middle, two are the ends."""
    assert Range(ba(100), ba(1600), tries).grid() == [ba(time) for time in times]


def test_a_parabola_in_the_logarithm_is_solved_by_one_step():
    """A quadratic is found from the best three of the grid, and the search ends."""
    scores = search(Range(ba(100), ba(10000), 12), lambda time: math.log(time / 600) ** 2)
    assert len(scores) == 9
    assert float(list(scores)[-1].value) == pytest.approx(600, rel=0.005)


@given(best=st.floats(100, 10000), tries=st.integers(6, 16), power=st.sampled_from([1.0, 1.5, 4.0]))
def test_the_best_is_found_within_one_step_of_the_refinement(best: float, tries: int, power: float):
    """Whatever the valley's shape: the best that was evaluated lies beside the true one, in at most as many tries."""
    wanted = Range(ba(100), ba(10000), tries)
    scores = search(wanted, lambda time: abs(math.log(time / best)) ** power)
    assert len(scores) <= tries
    found = min(scores, key=lambda time: scores[time])
    step = math.log(100) / (len(wanted.grid()) - 1)
    assert abs(math.log(float(found.value) / best)) <= step / 2 + 0.01


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.inf), min_size=20, max_size=20))
def test_any_scores_end_within_the_tries_and_the_range(values: list[float]):
    """Noise and failures: nothing outside, nothing twice, nothing nearer than the least step."""
    left = iter(values)
    scores = search(Range(ba(10), ba(1000), 20), lambda time: next(left))
    times = sorted(float(time.value) for time in scores)
    assert len(times) <= 20
    assert times[0] == 10
    assert times[-1] == 1000
    assert all(newer / older > 1 + LEAST_STEP * 0.8 for older, newer in pairwise(times))


def test_where_all_fail_nothing_follows():
    """There is no best to look around."""
    wanted = Range(ba(10), ba(1000), 20)
    assert wanted.refined(dict.fromkeys(wanted.grid(), math.inf)) is None


def test_a_best_at_the_end_is_looked_around_too():
    """There is no parabola; the golden section of the one side comes next."""
    wanted = Range(ba(100), ba(10000), 6)
    grid = wanted.grid()
    following = wanted.refined({time: float(number) for number, time in enumerate(grid)})
    assert following is not None
    assert grid[0].value < following.value < grid[1].value


@pytest.mark.parametrize(
    ("low", "high", "tries", "words"),
    [
        ("100ba", "2ep", 5, "different units"),
        ("100ba", "100ba", 5, "no range"),
        ("0ba", "100ba", 5, "no range"),
        ("100ba", "infba", 5, "no range"),
        ("1ba", "2ba", 0, "not a number of half-lives"),
    ],
)
def test_what_is_no_range_is_refused(low: str, high: str, tries: int, words: str):
    """Both ends above 0, finite, of one unit, the shorter first."""
    with pytest.raises(UsageError, match=words):
        Range(Time.parse(low), Time.parse(high), tries)


@pytest.mark.parametrize(
    ("times", "words"), [([], "which half-lives"), (["5ba", "5.0ba"], "twice"), (["5ba", "1ep"], "different units")]
)
def test_named_half_lives_are_checked(times: list[str], words: str):
    """Some, each once, of one unit."""
    with pytest.raises(UsageError, match=words):
        check_half_lives([Time.parse(time) for time in times])
