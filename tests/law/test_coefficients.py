"""Weights that are given: their sum, and what is no weight."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.coefficients import Coefficients
from ema_cli.law.laws import make_law
from ema_cli.law.recipe import Recipe


def test_a_sum_near_1_is_divided_by():
    """Six digits of thirds are an average, negative weights too."""
    law = Coefficients.of({"a": 0.333333, "b": 0.333333, "c": 0.333333})
    assert law.shares() == {"a": 0.333333 / law.sum, "b": 0.333333 / law.sum, "c": 0.333333 / law.sum}
    assert math.fsum(law.shares().values()) == pytest.approx(1, abs=1e-15)
    assert Coefficients.of({"a": -0.5, "b": 1.5}).shares() == {"a": -0.5, "b": 1.5}
    with pytest.raises(UsageError, match=r"the sum is 0\.999997, not 1"):
        Coefficients.of({"a": 0.333333, "b": 0.333333, "c": 0.333331})


def test_any_sum_is_taken_as_it_is():
    """Nothing is divided, also where the sum is near 1."""
    law = Coefficients.of({"a": 0.333333, "b": 0.666666}, any_sum=True)
    assert law.shares() == {"a": 0.333333, "b": 0.666666}
    assert law.to_dict() == {"coefficients": {"a": 0.333333, "b": 0.666666}, "any_sum": True}
    recipe = Recipe(coefficients={"a": 2}, any_sum=True)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert make_law(**law.to_dict()) == law


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": {"a": math.nan}}, "'a' has nan, which is no coefficient"),
        ({"coefficients": {"a": 1e6}, "any_sum": True}, r"'a' has 1e\+06, which is no coefficient"),
        ({"coefficients": {"a": 10**400}}, "a number is too large"),
        ({"coefficients": {}}, "none is other than 0"),
        ({"coefficients": {"a": 0}, "any_sum": True}, "none is other than 0"),
        ({"coefficients": {"a": True}}, "takes numbers by names or clocks"),
        ({"coefficients": "a"}, "takes numbers by names or clocks"),
        ({"coefficients": {"a": 2}}, "the sum is 2, not 1"),
        ({"coefficients": {"a": 1}, "last": 3}, "^last=: coefficients= says what enters"),
        ({"coefficients": {"a": 1}, "start": "3ba"}, "^start=: coefficients= says what enters"),
        ({"coefficients": {"a": 1}, "update_interval": "3ba"}, "^update_interval=: coefficients= says what enters"),
        ({"coefficients": {"a": 1}, "half_life": "3ba"}, "only one of"),
        ({"half_life": "3ba", "any_sum": True}, "^any_sum=: goes with coefficients="),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str):
    """The option is named, or the key."""
    with pytest.raises(UsageError, match=message):
        Recipe(**options)
