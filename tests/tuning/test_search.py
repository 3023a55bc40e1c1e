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
from ema_cli.tuning.search import LEAST_SHARE, LEAST_STEP, Range
from ema_cli.tuning.settings import Setting, read_setting


def ba(value: float | Fraction) -> Setting:
    return Setting(Fraction(value), "ba")


def factors(low: float, high: float, tries: int) -> Range:
    return Range(Setting(low), Setting(high), tries)


def search(wanted: Range, metric: Callable[[float], float]) -> dict[Setting, float]:
    """Return what is evaluated, in order, with its score."""
    scores = {time: metric(float(time.number)) for time in wanted.grid()}
    while (following := wanted.refined(scores)) is not None:
        assert following not in scores
        scores[following] = metric(float(following.number))
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
    assert float(list(scores)[-1].number) == pytest.approx(600, rel=0.005)


@given(best=st.floats(100, 10000), tries=st.integers(6, 16), power=st.sampled_from([1.0, 1.5, 4.0]))
def test_the_best_is_found_within_one_step_of_the_refinement(best: float, tries: int, power: float):
    """Whatever the valley's shape: the best that was evaluated lies beside the true one, in at most as many tries."""
    wanted = Range(ba(100), ba(10000), tries)
    scores = search(wanted, lambda time: abs(math.log(time / best)) ** power)
    assert len(scores) <= tries
    found = min(scores, key=lambda time: scores[time])
    step = math.log(100) / (len(wanted.grid()) - 1)
    assert abs(math.log(float(found.number) / best)) <= step / 2 + 0.01


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.inf), min_size=20, max_size=20))
def test_any_scores_end_within_the_tries_and_the_range(values: list[float]):
    """Noise and failures: nothing outside, nothing twice, nothing nearer than the least step."""
    left = iter(values)
    scores = search(Range(ba(10), ba(1000), 20), lambda time: next(left))
    times = sorted(float(time.number) for time in scores)
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
    assert grid[0].number < following.number < grid[1].number


@pytest.mark.parametrize("best", [0.0, 0.37, 0.5, 0.91, 1.0])
def test_factors_are_searched_on_a_linear_scale(best: float):
    """As the loss along a line through a valley: found within a step, in at most 12 evaluations."""
    scores = search(factors(0, 1, 12), lambda x: (x - best) ** 2 + 1)
    found = min(scores, key=lambda setting: scores[setting])
    assert abs(found.number - best) <= LEAST_SHARE
    assert len(scores) <= 12


def test_a_grid_of_factors_has_equal_distances_and_both_ends():
    """Two thirds of the tries, and at least three."""
    assert [setting.number for setting in factors(0, 1, 5).grid()] == [0, 0.333, 0.667, 1]
    assert [setting.number for setting in factors(-1, 3, 3).grid()] == [-1, 1.0, 3]
    assert [setting.number for setting in factors(0, 2, 1).grid()] == [1.0]


@pytest.mark.parametrize(("low", "high", "profile"), [("2%ba", "20%ba", None), ("500ba", "5000ba", "1-sqrt")])
def test_shares_and_windows_are_searched_as_half_lives(low: str, high: str, profile: str | None):
    """At equal ratios; what is found is one of them again."""
    ends = (read_setting(end, "between", profile) for end in (low, high))
    wanted = Range(*ends, 9)
    scores = search(wanted, lambda number: math.log(number / float(wanted.low.number) / 4.2) ** 2)
    found = min(scores, key=lambda setting: scores[setting])
    assert float(found.number) == pytest.approx(4.2 * wanted.low.number, rel=0.005)
    assert (found.unit, found.profile) == (wanted.low.unit, profile)
    assert Setting.parse(found.name) == found


@pytest.mark.parametrize(
    ("low", "high", "tries", "words"),
    [
        ("100ba", "2ep", 5, "between=: 100ba and 2ep have different units"),
        ("5%ba", "200ba", 5, "between=: 5%ba and 200ba have different units"),
        ("100ba", "100ba", 5, "100ba to 100ba is no range of half-lives"),
        ("9%ba", "2%ba", 5, "9%ba to 2%ba is no range of half-lives"),
        ("0ba", "100ba", 5, "is no range"),
        ("100ba", "infba", 5, "is no range"),
        ("1ba", "2ba", 0, "0 is not a number of candidates"),
    ],
)
def test_what_is_no_range_is_refused(low: str, high: str, tries: int, words: str):
    """Both ends above 0, finite, of one unit, the shorter first."""
    with pytest.raises(UsageError, match=words):
        Range(read_setting(low, "between"), read_setting(high, "between"), tries)


@pytest.mark.parametrize("ends", [(1, 0), (0, 0), (-2, 1), (0, 101), (float("nan"), 1)])
def test_what_is_no_range_of_factors_is_refused(ends: tuple[float, float]):
    """The smaller one first, from -1 to 100."""
    with pytest.raises(UsageError, match="is no range of factors"):
        factors(*ends, 3)
