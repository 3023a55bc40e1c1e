"""Recipes in words."""

from __future__ import annotations

from typing import Any

import pytest

from ema_cli.law.recipe import Recipe
from ema_cli.law.wording import recipe_details, recipe_phrase, recipes_line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([{"half_life": "50ba"}], "With half-life 50ba, update interval 1ba:"),
        ([{"half_life": "25ba"}, {"half_life": "50ba"}], "With half-lives 25ba, 50ba, update interval 1ba:"),
        ([{"half_life": "0.5ba"}, {"half_life": "50ba"}], "With half-lives 0.5ba, 50ba, update interval every or 1ba:"),
        ([{"smoothing": 0.99, "bias_correction": True}],
            "With smoothing 0.99, update interval every, bias correction:"),
        ([{"profile": "power", "sigma_rel": 0.1}], "With profile power-0.1, update interval every:"),
        ([{"smoothing": 0.9}, {"smoothing": 0.99}], "With smoothings 0.9, 0.99, update interval every:"),
    ],
)  # fmt: skip
def test_one_line_tells_the_law_of_all_plans(options: list[dict[str, Any]], line: str):
    """The plans of one command differ in the value of their law alone."""
    assert recipes_line([Recipe(**given) for given in options]) == line


@pytest.mark.parametrize(
    ("options", "details", "phrase"),
    [
        ({"half_life": "50ba"}, ["half-life 50ba", "update interval 1ba"],
            "with a half-life of 50ba and an update every 1ba"),
        ({"half_life": "0.5ep"}, ["half-life 0.5ep", "update interval every"], "with a half-life of 0.5ep"),
        ({"smoothing": 0.9999999}, ["smoothing 0.9999999", "update interval every"],
            "with a smoothing of 0.9999999 at each checkpoint"),
        ({"smoothing": 0.9, "update_interval": "2ba", "bias_correction": True},
            ["smoothing 0.9", "update interval 2ba", "bias correction"],
            "with a smoothing of 0.9 and an update every 2ba"),
        ({"profile": "power", "sigma_rel": 0.1}, ["profile power", "width 0.1", "update interval every"],
            "with the profile power and the relative width 0.1"),
        ({"profile": "1-sqrt"}, ["profile 1-sqrt", "update interval every"], "with the profile 1-sqrt"),
    ],
)  # fmt: skip
def test_a_recipe_is_a_list_of_details_and_a_phrase(options: dict[str, Any], details: list[str], phrase: str):
    """A job's summary lists them, a model card says them in a sentence."""
    assert recipe_details(Recipe(**options)) == details
    assert recipe_phrase(Recipe(**options)) == phrase
