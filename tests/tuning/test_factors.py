"""The search of factors: on a linear scale, as that of half-lives on a logarithmic one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ema_cli.errors import UsageError
from ema_cli.tuning.factors import LEAST_STEP, Factor, Factors, parse_factor


def search(wanted: Factors, loss: Callable[[float], float]) -> dict[Factor, float]:
    """Evaluate the grid, then what the search wants."""
    scores = {factor: loss(factor.value) for factor in wanted.grid()}
    while (following := wanted.refined(scores)) is not None:
        scores[following] = loss(following.value)
    return scores


def test_the_grid_has_equal_distances_and_both_ends():
    """Two thirds of the tries, and at least three."""
    assert Factors(0, 1, 5).grid() == [Factor(0), Factor(0.333), Factor(0.667), Factor(1)]
    assert Factors(-1, 3, 3).grid() == [Factor(-1), Factor(1.0), Factor(3)]
    assert Factors(0, 2, 1).grid() == [Factor(1.0)]


@pytest.mark.parametrize("best", [0.0, 0.37, 0.5, 0.91, 1.0])
def test_a_quadratic_is_found_within_a_step(best: float):
    """As the loss along a line through a valley: in at most 12 evaluations."""
    scores = search(Factors(0, 1, 12), lambda x: (x - best) ** 2 + 1)
    found = min(scores, key=scores.__getitem__)
    assert abs(found.value - best) <= LEAST_STEP
    assert len(scores) <= 12


def test_a_failure_is_no_place_to_go_to():
    """Infinite where it failed; where all failed, the search ends."""
    scores = search(Factors(0, 1, 9), lambda x: (x - 0.2) ** 2 if x < 0.7 else float("inf"))
    assert abs(min(scores, key=scores.__getitem__).value - 0.2) <= LEAST_STEP
    assert len(search(Factors(0, 1, 9), lambda x: float("inf"))) == 6


@pytest.mark.parametrize("ends", [(1, 0), (0, 0), (-2, 1), (0, 101), (float("nan"), 1)])
def test_what_is_no_range_is_refused(ends: tuple[float, float]):
    """The smaller one first, from -1 to 100."""
    with pytest.raises(UsageError, match="is no range of factors"):
        Factors(*ends, 3)
    with pytest.raises(UsageError, match="0 is not a number of candidates"):
        Factors(0, 1, 0)


def test_a_factor_is_read_from_the_name_of_its_candidate():
    """The name of any other candidate has none."""
    assert parse_factor(str(Factor(0.375))) == Factor(0.375)
    assert parse_factor(str(Factor(-1e-05))) == Factor(-1e-05)
    assert parse_factor("50ba") is None
    assert parse_factor("last") is None
