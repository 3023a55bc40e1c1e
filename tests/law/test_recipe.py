"""What is asked for: values and combinations that are refused, and what the defaults come to."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.recipe import EVERY, Recipe
from ema_cli.law.time import Time, Unit

TIMES = ("half_life", "update_interval", "start", "stop")


def recipe(**options: Any) -> Recipe:
    """Make a recipe from texts."""
    parsed = {name: Time.parse(value) if name in TIMES and value != EVERY else value for name, value in options.items()}
    return Recipe(**parsed)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({}, "one of --half-life, --smoothing and --profile is needed", "--half-life 50ba"),
        ({"start": "5ba"}, "one of --half-life, --smoothing and --profile is needed", "--half-life 50ba"),
        (
            {"half_life": "5ba", "smoothing": 0.9},
            "only one of --half-life, --smoothing and --profile",
            "--half-life 50ba",
        ),
        (
            {"half_life": "0ba", "smoothing": 0.0},
            "only one of --half-life, --smoothing and --profile",
            "--half-life 50ba",
        ),
        ({"smoothing": -0.1}, r"^--smoothing: -0\.1 is not in \[0, 1\]$", "0.99"),
        ({"smoothing": 1.0000001}, r"^--smoothing: .* is not in \[0, 1\]$", "0.99"),
        ({"smoothing": math.nan}, r"^--smoothing: nan is not in \[0, 1\]$", "0.99"),
        ({"smoothing": math.inf}, r"^--smoothing: inf is not in \[0, 1\]$", "0.99"),
        ({"half_life": "5ba", "update_interval": "0ba"}, r"^--update-interval: '0ba' is no distance", "every"),
        ({"half_life": "5ba", "update_interval": "infba"}, r"^--update-interval: 'infba' is no distance", "every"),
        ({"smoothing": 0.9, "update_interval": "0ba"}, r"^--update-interval: '0ba' is no distance", "every"),
        (
            {"half_life": "5ba", "update_interval": "1ep"},
            r"^--update-interval: '1ep' and --half-life '5ba' have different units$",
            "same unit",
        ),
        ({"half_life": "0ba", "update_interval": "1tok"}, "have different units", "same unit"),
        ({"half_life": "5ba", "last": 0}, r"^--last: 0 is not a number of checkpoints$", "at least 1"),
        ({"half_life": "5ba", "last": -3}, r"^--last: -3 is not a number of checkpoints$", "at least 1"),
        ({"half_life": "5ba", "profile": "uniform"}, "only one of", "--half-life 50ba"),
        ({"profile": "cosine"}, "^--profile: 'cosine' is unknown$", "power, uniform, linear, 1-sqrt"),
        ({"profile": "power"}, "^--sigma-rel is the width of --profile power", "--sigma-rel 0.1"),
        ({"profile": "linear", "sigma_rel": 0.1}, "^--sigma-rel is the width of --profile power", "--sigma-rel 0.1"),
        ({"half_life": "5ba", "sigma_rel": 0.1}, "^--sigma-rel is the width of --profile power", "--sigma-rel 0.1"),
        ({"profile": "power", "sigma_rel": 0.3}, r"^--sigma-rel: 0\.3 is not above 0 and at most 0\.2887$", "0.05"),
        ({"profile": "power", "sigma_rel": math.nan}, "^--sigma-rel: nan is not", "0.05"),
        ({"profile": "uniform", "bias_correction": True}, "^--bias-correction is for a half-life", "leave it out"),
        ({"half_life": "5ba", "start": "infba"}, r"^--start: infinity leaves nothing", "1000ba"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(options: dict[str, Any], message: str, hint: str):
    """The option is named, with its value, and the hint says what would make sense."""
    with pytest.raises(UsageError, match=message) as raised:
        recipe(**options)
    assert raised.value.exit_code == 2
    assert hint in (raised.value.hint or "")


def test_an_interval_is_a_time_or_every():
    """Another word is refused."""
    with pytest.raises(UsageError, match=r"^--update-interval: 'often' is neither a time nor 'every'$"):
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
    found = recipe(**options)
    assert found.interval == (Time.parse(interval) if interval else None)
    assert found.unit is unit


@pytest.mark.parametrize("smoothing", [0, 0.0, 0.5, 1, 1.0])
def test_a_smoothing_may_be_0_and_1(smoothing: float):
    """Both ends are meant: the newest, and the first."""
    assert recipe(smoothing=smoothing).smoothing == smoothing


def test_start_and_stop_may_have_any_unit():
    """They need not have that of the half-life; a start of 0 and a stop of infinity leave out nothing."""
    found = recipe(half_life="5ba", start="0ep", stop="inftok")
    assert (found.start, found.stop) == (Time(Fraction(0), Unit.EPOCH), Time(math.inf, Unit.TOKEN))
    assert found.unit is Unit.BATCH
