"""What is asked for: values and combinations that are refused, and what the defaults come to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import EVERY, Time, Unit


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({}, "one of half_life=, smoothing=, profile= and coefficients= is needed", "half_life='50ba'"),
        ({"start": "5ba"}, "one of half_life=, smoothing=, profile= and coefficients= is needed", "half_life='50ba'"),
        (
            {"half_life": "5ba", "smoothing": 0.9},
            "only one of half_life=, smoothing=, profile= and coefficients=",
            "half_life='50ba'",
        ),
        (
            {"half_life": "0ba", "smoothing": 0.0},
            "only one of half_life=, smoothing=, profile= and coefficients=",
            "half_life='50ba'",
        ),
        ({"smoothing": -0.1}, r"^smoothing=: -0\.1 is not in \[0, 1\]$", "0.99"),
        ({"smoothing": 1.0000001}, r"^smoothing=: .* is not in \[0, 1\]$", "0.99"),
        ({"smoothing": math.nan}, r"^smoothing=: nan is not in \[0, 1\]$", "0.99"),
        ({"smoothing": math.inf}, r"^smoothing=: inf is not in \[0, 1\]$", "0.99"),
        ({"half_life": "5ba", "update_interval": "0ba"}, r"^update_interval=: '0ba' is no distance", "every"),
        ({"half_life": "5ba", "update_interval": "infba"}, r"^update_interval=: 'infba' is no distance", "every"),
        ({"smoothing": 0.9, "update_interval": "0ba"}, r"^update_interval=: '0ba' is no distance", "every"),
        (
            {"half_life": "5ba", "update_interval": "1ep"},
            r"^update_interval=: '1ep' and half_life= '5ba' have different units$",
            "same unit",
        ),
        ({"half_life": "0ba", "update_interval": "1tok"}, "have different units", "same unit"),
        ({"half_life": "5ba", "last": 0}, r"^last=: 0 is not a number of checkpoints$", "at least 1"),
        ({"half_life": "5ba", "last": -3}, r"^last=: -3 is not a number of checkpoints$", "at least 1"),
        ({"half_life": "5ba", "profile": "uniform"}, "only one of", "half_life='50ba'"),
        ({"profile": "sine"}, "^profile=: 'sine' is unknown$", "power, uniform, linear, 1-sqrt, cosine, inverse-sqrt"),
        ({"profile": "power"}, "^sigma_rel= is the width of profile='power'", "sigma_rel=0.1"),
        ({"profile": "linear", "sigma_rel": 0.1}, "^sigma_rel= is the width of profile='power'", "sigma_rel=0.1"),
        ({"half_life": "5ba", "sigma_rel": 0.1}, "^sigma_rel= is the width of profile='power'", "sigma_rel=0.1"),
        ({"profile": "power", "sigma_rel": 0.3}, r"^sigma_rel=: 0\.3 is not above 0 and at most 0\.2887$", "0.05"),
        ({"profile": "power", "sigma_rel": math.nan}, "^sigma_rel=: nan is not", "0.05"),
        ({"window": "9ba"}, "^window= is the stretch over which a profile is laid", "profile='linear'"),
        ({"half_life": "5ba", "window": "9ba"}, "^window= is the stretch over which a profile is laid", "window='9ba'"),
        ({"profile": "power", "sigma_rel": 0.1, "window": "9ba"}, "^window= is the stretch", "profile='linear'"),
        ({"profile": "linear", "window": "0ba"}, "^window=: '0ba' is no stretch of training time$", "5000ba"),
        ({"profile": "linear", "window": "infba"}, "^window=: 'infba' is no stretch of training time$", "5000ba"),
        (
            {"profile": "linear", "window": "5ba", "update_interval": "1ep"},
            "^update_interval=: '1ep' and window= '5ba' have different units$",
            "same unit",
        ),
        (
            {"profile": "uniform", "bias_correction": True},
            "^bias_correction=True is for a fixed half-life",
            "leave it out",
        ),
        ({"half_life": "5ba", "start": "infba"}, r"^start=: infinity leaves nothing", "1000ba"),
    ],
)
def test_senseless_options_are_usage_errors(options: dict[str, Any], message: str, hint: str):
    """The option is named, with its value, and the hint says what would make sense."""
    with pytest.raises(UsageError, match=message) as raised:
        Recipe(**options)
    assert raised.value.exit_code == 2
    assert hint in (raised.value.hint or "")


def test_an_interval_is_a_time_or_every():
    """Another word is refused."""
    with pytest.raises(UsageError, match=r"^update_interval=: 'often' is not a time$"):
        Recipe(half_life=Time.parse("5ba"), update_interval="often")


@pytest.mark.parametrize(
    ("options", "interval", "unit"),
    [
        ({"half_life": "50ba"}, "1ba", Unit.BATCH),
        ({"half_life": "1ep"}, "1ep", Unit.EPOCH),
        ({"half_life": "1.5ep"}, "1ep", Unit.EPOCH),
        ({"half_life": "inftok"}, "1tok", Unit.TOKEN),
        ({"half_life": "0.99ep"}, None, Unit.EPOCH),
        ({"half_life": "0sp"}, None, Unit.SAMPLE),
        ({"half_life": "50ba", "update_interval": EVERY}, None, Unit.BATCH),
        ({"half_life": "50ba", "update_interval": "5ba"}, "5ba", Unit.BATCH),
        ({"half_life": "0.5ep", "update_interval": "0.25ep"}, "0.25ep", Unit.EPOCH),
        ({"half_life": "0.5ep", "update_interval": "1ep"}, "1ep", Unit.EPOCH),
        ({"smoothing": 0.9}, None, None),
        ({"smoothing": 0.9, "update_interval": EVERY}, None, None),
        ({"smoothing": 0.9, "update_interval": "10tok"}, "10tok", Unit.TOKEN),
    ],
)
def test_the_interval_and_its_default(options: dict[str, Any], interval: str | None, unit: Unit | None):
    """1 in the unit of the half-life as in Composer; each checkpoint below one unit, and with a smoothing."""
    found = Recipe(**options)
    assert found.interval == (Time.parse(interval) if interval else None)
    assert found.unit is unit


@pytest.mark.parametrize("smoothing", [0, 0.0, 0.5, 1, 1.0])
def test_a_smoothing_may_be_0_and_1(smoothing: float):
    """Both ends are meant: the newest, and the first."""
    assert Recipe(smoothing=smoothing).law == Smoothing(smoothing)


def test_start_and_stop_may_have_any_unit():
    """They need not have that of the half-life; a start of 0 and a stop of infinity leave out nothing."""
    found = Recipe(half_life="5ba", start="0ep", stop="inftok")
    assert (found.start, found.stop) == (Time(Fraction(0), Unit.EPOCH), Time(math.inf, Unit.TOKEN))
    assert found.unit is Unit.BATCH


def test_texts_and_times_make_one_recipe():
    """A caller may write either."""
    times = {"half_life": Time.parse("50ba"), "update_interval": Time.parse("10ba"), "start": Time.parse("100ba")}
    assert Recipe(half_life="50ba", update_interval="10ba", start="100ba") == Recipe(**times)
    assert Recipe(HalfLife(Time.parse("50ba")), update_interval=EVERY) == Recipe(
        half_life="50ba", update_interval="every"
    )


def test_a_law_is_given_once():
    """An object, or the options that choose one."""
    with pytest.raises(UsageError, match=r"^law=: a law is given twice$"):
        Recipe(Smoothing(0.9), smoothing=0.9)


def test_a_recipe_is_replaced_field_by_field():
    """Its fields are what it is made of."""
    asked = Recipe(half_life="50ba", start="100ba", last=3)
    changed = replace(asked, update_interval=EVERY)
    assert (changed.law, changed.start, changed.last, changed.interval) == (asked.law, asked.start, 3, None)


@pytest.mark.parametrize(
    "options",
    [
        {"half_life": "50ba"},
        {"half_life": "50ba", "update_interval": "10ba", "start": "1ep", "stop": "infba", "last": 3},
        {"half_life": "50ba", "update_interval": "every", "bias_correction": True},
        {"smoothing": 0.99},
        {"profile": "power", "sigma_rel": 0.1},
        {"profile": "1-sqrt"},
        {"profile": "cosine"},
        {"profile": "cosine", "window": "500ba"},
        {"profile": "inverse-sqrt"},
    ],
)
def test_a_recipe_is_read_as_it_is_written(options: dict[str, Any]):
    """A manifest's recipe is the one that was asked for; its default interval is the law's again."""
    asked = Recipe(**options)
    assert Recipe.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked


def test_an_interval_that_is_the_default_is_left_to_the_law():
    """`1ba` for a half-life of 50ba says nothing of its own."""
    data = Recipe(half_life="50ba", update_interval="1ba").to_dict()
    assert Recipe.from_dict(data).update_interval is None


def test_a_time_that_is_none_names_what_holds_it():
    """The manifest is wrong, not an option."""
    data = {**Recipe(half_life="50ba").to_dict(), "start": "soon"}
    with pytest.raises(UsageError, match=r"^the manifest: 'soon' is not a time$"):
        Recipe.from_dict(data)


@pytest.mark.parametrize(
    "options",
    [{"half_life": 50}, {"half_life": 50.0}, {"start": 5}, {"stop": 5}, {"update_interval": 5}],
    ids=lambda options: next(iter(options)),
)
def test_a_bare_number_is_no_time(options: dict[str, Any]):
    """From Python, where nothing else checks it."""
    with pytest.raises(UsageError, match="is not a time") as raised:
        Recipe(**{"half_life": "5ba", **options})
    assert raised.value.option == next(iter(options))
