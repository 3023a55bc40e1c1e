"""Settings: in what candidates differ, as names, as options of a recipe, and back."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.time import Time
from ema_cli.tuning.settings import Setting, read_setting

SETTINGS: list[tuple[Setting, str, dict[str, Any], str]] = [
    (Setting(Fraction(50), "ba"), "50ba", {"half_life": "50ba"}, "half-life"),
    (Setting(Fraction(5, 2), "%tok"), "2.5%tok", {"half_life": "2.5%tok"}, "half-life"),
    (Setting(float("inf"), "ep"), "infep", {"half_life": "infep"}, "half-life"),
    (Setting(Fraction(10**9), "tok", "linear"), "linear-1e9tok", {"profile": "linear", "window": "1e9tok"}, "window"),
    (Setting(Fraction(500), "ba", "1-sqrt"), "1-sqrt-500ba", {"profile": "1-sqrt", "window": "500ba"}, "window"),
    (Setting(Fraction(1, 2), "ep", "inverse-sqrt"), "inverse-sqrt-0.5ep",
     {"profile": "inverse-sqrt", "window": "0.5ep"}, "window"),
    (Setting(0.375), "x0.375", {"extrapolate": 0.375}, "factor"),
    (Setting(-1e-05), "x-1e-05", {"extrapolate": -1e-05}, "factor"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "name", "options", "noun"), SETTINGS)
def test_a_setting_is_read_from_its_name_and_makes_a_recipe(
    setting: Setting, name: str, options: dict[str, Any], noun: str
):
    """Where it is a law by itself, its name is the law's."""
    assert (setting.name, setting.options(), setting.noun) == (name, options, noun)
    assert Setting.parse(name) == setting
    if noun != "factor":
        assert Recipe(**options).law.name == name


@pytest.mark.parametrize("name", ["", "x", "xyz", "5", "ba", "linear-", "linear-5%ba", "5%", "-5ba-"])
def test_what_is_no_name_is_an_error(name: str):
    """As in a manifest that somebody edited."""
    with pytest.raises(UsageError):
        Setting.parse(name)


def test_times_are_read_as_texts_are():
    """From Python."""
    assert read_setting(Time.parse("5ba"), "half_life") == read_setting("5.0ba", "half_life")
    assert read_setting(RelativeHalfLife.parse("5%ba"), "half_life") == read_setting("5 %ba", "half_life")
    with pytest.raises(UsageError, match="7 is not a time"):
        read_setting(7, "half_life")
