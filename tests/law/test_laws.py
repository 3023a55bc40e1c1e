"""The laws: what each update takes in, and how laws are named, written and read."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.decay import UNIFORM_SIGMA_REL, power_share
from ema_cli.law.events import Gap
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.law import Law, LiveLaw
from ema_cli.law.laws import LAW_KEYS, PROFILES, make_law
from ema_cli.law.plain_profiles import Cosine, InverseSquareRoot, Linear, SquareRoot, Uniform
from ema_cli.law.power import Power
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.time import Time, Unit


@pytest.mark.slow
@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28, UNIFORM_SIGMA_REL])
def test_the_exponent_has_the_width_that_is_asked_for(sigma_rel: float):
    """The standard deviation of (gamma + 1) t^gamma on [0, 1], integrated, is sigma_rel."""
    gamma = Power(sigma_rel).gamma
    count = 200_000
    middles = [(n + 0.5) / count for n in range(count)]
    weights = [(gamma + 1) * t**gamma / count for t in middles]
    mean = math.fsum(w * t for w, t in zip(weights, middles, strict=True))
    variance = math.fsum(w * (t - mean) ** 2 for w, t in zip(weights, middles, strict=True))
    assert math.fsum(weights) == pytest.approx(1, abs=1e-6)
    assert math.sqrt(variance) == pytest.approx(sigma_rel, rel=1e-5)


def test_a_power_profile_forgets_its_first_copy():
    """At an event, what went before keeps (before / clock) ** (gamma + 1); the first copy stands for all before it."""
    law = Power(0.1)
    gap = Gap(Fraction(5), 1, Fraction(5))
    assert 1 - law.share(gap, Fraction(20)) == pytest.approx(0.75 ** (law.gamma + 1), rel=1e-12)
    assert law.share(Gap(Fraction(20), 1, Fraction(20)), Fraction(20)) == 1
    assert power_share(0, 7, 3.0) == 1
    assert power_share(7, 7, 3.0) == 0


LAWS: list[tuple[Law, dict[str, Any], str]] = [
    (HalfLife(Time.parse("50ba")), {"half_life": "50ba"}, "50ba"),
    (HalfLife(Time.parse("infep")), {"half_life": "infep"}, "infep"),
    (Smoothing(0.99), {"smoothing": 0.99}, "smoothing-0.99"),
    (Power(0.1), {"profile": "power", "sigma_rel": 0.1}, "power-0.1"),
    (RelativeHalfLife(Fraction(5), Unit.BATCH), {"half_life": "5%ba"}, "5%ba"),
    (Uniform(), {"profile": "uniform"}, "uniform"),
    (Linear(), {"profile": "linear"}, "linear"),
    (SquareRoot(), {"profile": "1-sqrt"}, "1-sqrt"),
    (Cosine(), {"profile": "cosine"}, "cosine"),
    (Cosine(Time.parse("500ba")), {"profile": "cosine", "window": "500ba"}, "cosine-500ba"),
    (InverseSquareRoot(), {"profile": "inverse-sqrt"}, "inverse-sqrt"),
]


@pytest.mark.parametrize(("law", "data", "name"), LAWS, ids=[name for _, _, name in LAWS])
def test_a_law_is_made_again_from_its_data(law: Law, data: dict[str, Any], name: str):
    """Data have the names of the options, and so one function reads both."""
    assert law.to_dict() == data
    assert set(data) <= set(LAW_KEYS)
    assert make_law(**data) == law
    assert law.name == name


def test_every_profile_is_a_law():
    """What can be asked for can be made."""
    assert [make_law(profile=profile).name for profile in PROFILES if profile != "power"] == list(PROFILES[1:])


def test_four_laws_can_be_applied_live():
    """Profiles that end at a clock need to know it, and are for checkpoints."""
    assert [isinstance(law, LiveLaw) for law, _, _ in LAWS] == [True] * 5 + [False] * 6


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, math.nan])
def test_a_width_beyond_the_uniform_profile_is_refused(width: float):
    """The largest is that of a uniform average."""
    with pytest.raises(UsageError, match=r"is not above 0 and at most 0\.2887$") as raised:
        Power(width)
    assert raised.value.option == "sigma_rel"


def test_an_exponent_is_solved_for_once(monkeypatch: pytest.MonkeyPatch):
    """Applying the law again and again costs no search."""
    law = Power(0.123)
    first = law.gamma
    monkeypatch.setattr("ema_cli.law.decay._power_width", lambda gamma: pytest.fail("solved again"))
    assert law.gamma == first
    assert law.share(Gap(Fraction(1), 1, Fraction(1)), Fraction(10)) > 0
