"""Beyond an average, on the line from another one: against the two vectors of weights by themselves."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ema_cli.errors import UsageError
from ema_cli.law.extrapolated import Extrapolated
from ema_cli.law.recipe import Recipe
from ema_cli.planning.plan import make_plan
from tests.composer_recurrence import make_run

RUN = make_run(*({"ba": clock} for clock in range(100, 2001, 100)))


def vector(**options: Any) -> np.ndarray:
    """Return the weight of each checkpoint of the run, 0 for those that do not enter."""
    weights = {entry.checkpoint: entry.weight for entry in make_plan(RUN, Recipe(**options)).entries}
    return np.array([weights.get(checkpoint, 0.0) for checkpoint in RUN.checkpoints])


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("given", "other"),
    [
        ({"half_life": "200ba"}, {"half_life": "400ba"}),
        ({"half_life": "10%ba", "start": "300ba"}, {"half_life": "20%ba", "start": "300ba"}),
        ({"profile": "uniform", "window": "500ba"}, {"profile": "uniform", "window": "1000ba"}),
        ({"profile": "linear", "window": "500ba", "last": 7}, {"profile": "linear", "window": "1000ba", "last": 7}),
    ],
)
def test_it_is_the_sum_of_two_averages_by_themselves(given: dict[str, Any], other: dict[str, Any], factor: float):
    """(1 + x) A - x B, B twice as long by default: the weights of the two plans, added."""
    expected = (1 + factor) * vector(**given) - factor * vector(**other)
    found = vector(**given, extrapolate=factor)
    assert found == pytest.approx(expected, abs=1e-15)
    assert math.fsum(found) == pytest.approx(1, abs=1e-14)


def test_another_average_may_be_named():
    """From a half-life of 2000ba, or one that is shorter."""
    for other in ("2000ba", "50ba"):
        found = vector(half_life="200ba", extrapolate=0.5, extrapolate_from=other)
        assert found == pytest.approx(1.5 * vector(half_life="200ba") - 0.5 * vector(half_life=other), abs=1e-15)


def test_windows_span_the_line_of_consecutive_averages():
    """Away from twice the window is, by half the factor, away from the average of the window before."""
    newer, older = np.zeros(20), np.zeros(20)
    newer[-5:], older[-10:-5] = 1 / 5, 1 / 5
    # Windows have their beginning in them: 450ba are 5 checkpoints 100 apart, 950ba are 10.
    found = vector(profile="uniform", window="450ba", extrapolate=1.0, extrapolate_from="950ba")
    assert found == pytest.approx(1.5 * newer - 0.5 * older, abs=1e-15)


def test_it_is_made_again_from_its_data():
    """The manifest has the average, the factor and the other one, also where that is the default."""
    for options in (
        {"half_life": "200ba", "extrapolate": 0.5},
        {"profile": "uniform", "window": "500ba", "extrapolate": 1, "extrapolate_from": "600ba"},
        {"half_life": "5%ba", "extrapolate": 0.25, "start": "100ba"},
    ):
        recipe = Recipe(**options)  # type: ignore[arg-type]
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert isinstance(recipe.law, Extrapolated)
    assert Recipe(half_life="200ba", extrapolate=0.5).law.name == "200ba-extrapolate-0.5-from-400ba"
    assert recipe.law.average.origin == Fraction(100)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_life": "5ba", "extrapolate": math.nan}, "^extrapolate=: nan is not from -1 to 100"),
        ({"half_life": "5ba", "extrapolate": -1.5}, "^extrapolate=: -1.5 is not from -1 to 100"),
        (
            {"half_life": "5ba", "extrapolate": 1, "extrapolate_from": "5ba"},
            "^extrapolate_from=: 5ba is the average itself",
        ),
        ({"half_life": "5ba", "extrapolate": 1, "extrapolate_from": "x"}, "^extrapolate_from=: 'x' is not a time"),
        (
            {"half_life": "5ba", "extrapolate": 1, "extrapolate_from": "500%ba"},
            "^extrapolate_from=: 500%ba is no share",
        ),
        (
            {"profile": "uniform", "window": "5ba", "extrapolate": 1, "extrapolate_from": "0ba"},
            "^extrapolate_from=: '0ba' is no stretch",
        ),
        ({"half_life": "0ba", "extrapolate": 1}, "^extrapolate_from=: 0ba is the average itself"),
        ({"half_life": "5ba", "extrapolate": 1, "extrapolate_from": "5ep"}, "^extrapolate_from=: .* different units"),
        ({"half_life": "0.7ep", "extrapolate": 1}, "^extrapolate_from=: .* or updates"),
        ({"half_life": "60%ba", "extrapolate": 1}, "^extrapolate=: .* twice 60%ba is more than the training so far"),
        ({"profile": "uniform", "extrapolate": 1}, "^extrapolate=: goes on from an average of half_life="),
        ({"smoothing": 0.9, "extrapolate": 1}, "^extrapolate=: goes on from an average of half_life="),
        ({"half_life": "5ba", "extrapolate_from": "9ba"}, "^extrapolate_from=: goes with extrapolate="),
        ({"half_life": "5ba", "extrapolate": 1, "bias_correction": True}, "not for half-life 5ba extrapolated by 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str):
    """The option is named."""
    with pytest.raises(UsageError, match=message):
        Recipe(**options)
