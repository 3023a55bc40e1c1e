"""What can be asked of EMA, and what of it makes no sense: Composer's words, without the holes of its constructor."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from torch import nn

from ema_cli import EMA, Time, Unit
from ema_cli.errors import UsageError
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.power import Power


def tracks(**asked: Any) -> Any:
    return EMA(nn.Linear(2, 2), **asked).averages.tracks


def kept(**asked: Any) -> float:
    """Return the smoothing of the third update."""
    ema = EMA(nn.Linear(2, 2), **asked)
    (law,) = ema.averages.tracks.laws.values()
    for batch in (1, 2, 3):
        ema.update(batch=batch * 100, epoch=batch * 100)
    events = ema.averages.events
    gap = events.meet(events.previous + (ema.averages.tracks.interval.value if ema.averages.tracks.interval else 1))  # type: ignore[operator]
    assert gap is not None
    return 1 - law.share(gap, events.previous)  # type: ignore[no-any-return, arg-type]


@pytest.mark.parametrize(
    ("asked", "smoothing"),
    [
        ({}, 0.999307),
        ({"half_life": "50ba"}, 0.986233),
        ({"half_life": "50ba", "update_interval": "10ba"}, 0.870551),
        ({"half_life": "0ba"}, 0.0),  # Composer: ZeroDivisionError
        ({"half_life": "infba"}, 1.0),  # Composer: OverflowError
        ({"smoothing": 0.9}, 0.9),  # Composer: only one of the two, as half_life has a default
        ({"half_life": None, "smoothing": 0.9}, 0.9),  # Composer: AttributeError
        ({"half_life": None, "smoothing": 0.9, "update_interval": "1ba"}, 0.9),
        ({"smoothing": 1}, 1.0),
        ({"smoothing": 0}, 0.0),
        ({"half_life": "1000tok"}, None),  # Composer: no such unit
    ],
    ids=str,
)
def test_composers_calls(asked: dict[str, Any], smoothing: float | None):
    """Each call of Composer's constructor that makes sense has the smoothing that it means."""
    if smoothing is None:
        assert tracks(**asked).unit is Unit.TOKEN
    else:
        assert kept(**asked) == pytest.approx(smoothing, abs=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"half_life": "-5ba"}, "half_life=: '-5ba' is not a time"),  # Composer: diverges
        (
            {"update_interval": "0ba"},
            "update_interval=: '0ba' is no distance between updates",
        ),  # Composer: divides by 0
        ({"half_life": "50ba", "smoothing": 0.9}, "only one of half_life, smoothing and sigma_rel"),
        ({"smoothing": 5.0}, r"smoothing=: 5 is not in \[0, 1\]"),  # Composer: diverges
        ({"smoothing": -0.1}, r"smoothing=: -0.1 is not in \[0, 1\]"),
        ({"smoothing": math.nan}, r"smoothing=: nan is not in \[0, 1\]"),
        ({"half_life": "2ep", "update_interval": "10ba"}, "have different units"),
        ({"half_life": "0.1dur"}, "half_life=: '0.1dur' is not a time"),
        ({"half_life": "50"}, "half_life=: '50' is not a time"),  # Composer: 50 seconds
        ({"half_life": ""}, "half_life=: '' is not a time"),  # Composer: 0 seconds
        ({"half_life": 50}, "half_life=: 50 is not a time"),
        ({"ema_start": "0.0dur"}, "ema_start=: '0.0dur' is not a time"),
        ({"ema_start": "infba"}, "ema_start=: infinity leaves nothing to average"),
        ({"ema_start": 5}, "ema_start=: 5 is not a time"),
        ({"update_interval": "infba"}, "update_interval=: 'infba' is no distance"),
        ({"update_interval": "often"}, "update_interval=: 'often' is not a time"),
        ({"half_life": ("50ba", "2ep")}, "the units of several must agree"),
        ({"half_life": ("50ba", "50ba")}, "give each average once"),
        ({"half_life": ("50ba", "5e1ba")}, "give each average once"),
        ({"half_life": ()}, "at least one"),
        ({"half_life": ("0.5ba", "50ba")}, "below one unit every update counts"),
        ({"smoothing": "0.9"}, "smoothing=: '0.9' is no number"),
        ({"smoothing": (0.9, 0.9)}, "give each average once"),
        ({"sigma_rel": 0}, "sigma_rel=: 0 is not above 0 and at most 0.2887"),
        ({"sigma_rel": 0.29}, "sigma_rel=: 0.29 is not above 0 and at most 0.2887"),
        ({"sigma_rel": math.nan}, "sigma_rel=: nan is not above 0 and at most 0.2887"),
        ({"sigma_rel": 0.1, "smoothing": 0.9}, "only one of"),
        ({"offload": "cuda"}, "offload: 'cuda' is neither None nor 'cpu'"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_usage_errors(asked: dict[str, Any], message: str):
    """Values and combinations that make no sense are usage errors when the EMA is made, and speak of arguments."""
    with pytest.raises(UsageError, match=message) as raised:
        tracks(**asked)
    assert "--" not in str(raised.value)
    assert "--" not in (raised.value.hint or "")


def test_names_and_order_are_composers():
    """half_life, smoothing, ema_start, update_interval, train_with_ema_weights, in this order; 1000ba by default."""
    found = EMA(nn.Linear(2, 2), "50ba", None, "3ba", "10ba", True)
    assert found.train_with_ema_weights
    assert found.averages.tracks == tracks(half_life="50ba", ema_start="3ba", update_interval="10ba")
    assert tracks().laws == {"1000ba": HalfLife(Time.parse("1000ba"))}
    assert (tracks().interval, tracks().start) == (Time.parse("1ba"), Time.parse("0ba"))


def test_several_averages():
    """Half-lives, smoothings and widths come in several, each under its name; times may be Time."""
    assert tracks(half_life=("25ba", Time.parse("100ba"))).laws == {
        "25ba": HalfLife(Time.parse("25ba")),
        "100ba": HalfLife(Time.parse("100ba")),
    }
    assert tracks(smoothing=[0.9, 0.99]).laws == {"smoothing-0.9": Smoothing(0.9), "smoothing-0.99": Smoothing(0.99)}
    assert tracks(sigma_rel=(0.05, 0.1)).laws == {"power-0.05": Power(0.05), "power-0.1": Power(0.1)}
    mixed = tracks(half_life=("0.5ba", "50ba"), update_interval="1ba")
    assert (mixed.interval, list(mixed.laws)) == (Time.parse("1ba"), ["0.5ba", "50ba"])


def test_the_interval_defaults_to_one_unit():
    """As `ema-cli average`: one unit of the half-life, every update below one unit; a smoothing counts batches."""
    assert tracks(half_life="2ep").interval == Time.parse("1ep")
    assert tracks(half_life="0.5ep").interval is None
    assert tracks(half_life="2ep", update_interval="every").interval is None
    assert tracks(smoothing=0.9).interval == Time.parse("1ba")
    assert tracks(sigma_rel=0.1).interval == Time.parse("1ba")
    assert tracks(smoothing=0.9, update_interval="1ep").unit is Unit.EPOCH


def test_a_first_copy_is_kept_where_there_are_several():
    """From the first copy other half-lives are made: it is kept by default where several averages are."""
    model = nn.Linear(2, 2)
    for asked, keeps in (
        ({"half_life": "5ba"}, False),
        ({"half_life": ("5ba", "9ba")}, True),
        ({"half_life": "5ba", "keep_first": True}, True),
        ({"half_life": ("5ba", "9ba"), "keep_first": False}, False),
    ):
        ema = EMA(model, **asked)  # type: ignore[arg-type]
        ema.update()
        assert (ema.averages.first is not None) is keeps


def test_a_half_life_that_float32_rounds_away_is_warned_of():
    """A million updates move an average of numbers near 1 not at all: the warning says so, with what helps."""
    with pytest.warns(UserWarning, match="longer update_interval"):
        EMA(nn.Linear(2, 2), half_life="1e6ba")
    EMA(nn.Linear(2, 2), half_life="1e6ba", update_interval="10ba")
    EMA(nn.Linear(2, 2), half_life="1e9tok")
    EMA(nn.Linear(2, 2), half_life="infba")


def test_times_are_checked_however_they_are_given():
    """A negative Time is no time either."""
    with pytest.raises(UsageError, match="half_life"):
        EMA(nn.Linear(2, 2), half_life=Time(Fraction(-1), Unit.BATCH))
