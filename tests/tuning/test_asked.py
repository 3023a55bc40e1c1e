"""What a tuning is asked for: which options go together, and the recipe of each candidate."""

from __future__ import annotations

from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.tuning.asked import Asked
from ema_cli.tuning.search import Range
from ema_cli.tuning.settings import Setting


@pytest.mark.parametrize(
    ("options", "laws"),
    [
        ({"half_lives": ["5ba", "7ba"]}, ["5ba", "7ba"]),
        ({"half_lives": ["5%ba", "7%ba"], "start": "10ba"}, ["5%ba", "7%ba"]),
        ({"profile": "cosine", "windows": ["5ba"], "last": 3}, ["cosine-5ba"]),
        ({"between": ("5ba", "9ba")}, ["5ba", "9ba"]),
        ({"between": ("2%ba", "9%ba")}, ["2%ba", "9%ba"]),
        ({"between": ("5ba", "9ba"), "profile": "linear"}, ["linear-5ba", "linear-9ba"]),
        ({"half_lives": ["5%ba"], "extrapolate": (0, 1)},
         ["5%ba-extrapolate-0.0-from-10%ba", "5%ba-extrapolate-1.0-from-10%ba"]),
        ({"profile": "uniform", "windows": ["5ba"], "extrapolate": ("0", "1"), "extrapolate_from": "9ba"},
         ["uniform-5ba-extrapolate-0.0-from-9ba", "uniform-5ba-extrapolate-1.0-from-9ba"]),
    ],
)  # fmt: skip
def test_candidates_differ_in_one_option(options: dict[str, Any], laws: list[str]):
    """Half-lives, shares, windows, factors; named or by the ends of a range."""
    asked = Asked.of(**options)
    assert [asked.recipe(setting).law.name for setting in asked.ends] == laws
    assert isinstance(asked.searched, Range) == ("between" in options or "extrapolate" in options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "which half-lives"),
        ({"profile": "linear"}, "which windows"),
        ({"half_lives": ["5ba", "5.0ba"]}, "half_life=: '5ba' is given twice"),
        ({"half_lives": ["5ba", "1ep"]}, "half-lives have different units"),
        ({"half_lives": ["5ba", "1%ba"]}, "half-lives have different units"),
        ({"windows": ["5ba"]}, "window=: goes with profile"),
        ({"profile": "linear", "windows": ["5%ba"]}, "window=: '5%ba' is a share of the training"),
        ({"profile": "linear", "half_lives": ["5ba"]}, "profile=: excludes half_life"),
        ({"profile": "linear", "windows": ["5ba"], "between": ("5ba", "6ba")}, "between=: excludes window"),
        ({"profile": "power", "windows": ["5ba"]}, "goes with one of uniform, linear"),
        ({"profile": "bema", "between": ("5ba", "6ba")}, "goes with one of uniform, linear"),
        ({"profile": "nonsense", "windows": ["5ba"]}, "goes with one of uniform, linear"),
        ({"profile": "bema"}, "goes with one of uniform, linear"),
        ({"profile": "nonsense"}, "goes with one of uniform, linear"),
        ({"profile": "linear", "between": ("5%ba", "6%ba")}, "is a share of the training"),
        ({"between": ("5ba",)}, "between=: takes two ends"),
        ({"between": 7}, "between=: takes several, not 7"),
        ({"between": ("5%ba", "600%ba")}, "600%ba is no share"),
        ({"half_lives": ["5ba"], "tries": 3}, "tries=: is for between"),
        ({"half_lives": ["5ba"], "extrapolate_from": "9ba"}, "extrapolate_from=: goes with extrapolate"),
        ({"half_lives": ["5ba", "6ba"], "extrapolate": (0, 1)}, "extrapolate=: goes on from the average of one"),
        ({"between": ("5ba", "6ba"), "extrapolate": (0, 1)}, "extrapolate=: goes on from the average of one"),
        ({"half_lives": ["5ba"], "extrapolate": (0, "b")}, "extrapolate=: 'b' is not a number"),
        ({"half_lives": ["5ba"], "extrapolate": (0,)}, "extrapolate=: takes two numbers, not 1"),
        ({"half_lives": ["5ba"], "extrapolate": 1}, "extrapolate=: takes several, not 1"),
        ({"half_lives": [5]}, "half_life=: 5 is not a time"),
        ({"half_lives": 5}, "half_life=: takes several"),
        ({"half_lives": "50ba"}, "half_life=: takes several"),
        ({"between": ("5ba", "9ba"), "tries": 2.5}, "tries=: 2.5 is not a number of candidates"),
        ({"between": ("5ba", "9ba"), "tries": 0}, "tries=: 0 is not a number of candidates"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(options: dict[str, Any], words: str):
    """The same from the command line and from Python."""
    with pytest.raises(UsageError, match=words):
        Asked.of(**options)


def test_the_widest_takes_in_the_most_checkpoints():
    """The largest of those that are named, or the upper end."""
    assert Asked.of(half_lives=["9ba", "50ba", "7ba"]).widest.name == "50ba"
    assert Asked.of(between=("9ba", "50ba")).widest.name == "50ba"
    assert Asked.of(half_lives=["9ba"], extrapolate=(0, 2)).widest == Setting(2.0)
