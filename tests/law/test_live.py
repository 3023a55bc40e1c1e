"""The law and the update events of a stored average, as data."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.exponential import HalfLife, Smoothing
from ema_cli.law.law import LiveLaw
from ema_cli.law.live import Schedule, live_law_from_dict, live_law_to_dict
from ema_cli.law.power import Power
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.time import Time, Unit


@pytest.mark.parametrize(
    ("law", "data"),
    [
        (HalfLife(Time.parse("50ba")), {"half_life": "50ba"}),
        (Smoothing(0.1 + 0.2), {"smoothing": "0.30000000000000004"}),
        (Power(0.1), {"sigma_rel": "0.1"}),
        (RelativeHalfLife(Fraction(5), Unit.BATCH), {"half_life": "5%ba"}),
    ],
)
def test_a_live_law_is_text_and_read_again(law: LiveLaw, data: dict[str, str]):
    """Numbers keep all their digits; a width alone is that of the power profile."""
    assert live_law_to_dict(law) == data
    assert live_law_from_dict({"average": "x", **data}) == law


def test_a_share_of_the_training_is_counted_from_the_start_of_the_schedule():
    """A file says where its average began, and the law counts from there."""
    law = live_law_from_dict({"half_life": "5%ba", "start": "100ba"})
    assert law == RelativeHalfLife(Fraction(5), Unit.BATCH, origin=Fraction(100))


@pytest.mark.parametrize(
    "data", [{}, {"half_life": "1ba", "smoothing": "0.9"}, {"smoothing": "1.5"}, {"sigma_rel": "0"}]
)
def test_data_without_one_valid_law_are_refused(data: dict[str, Any]):
    """None, two, and values out of range."""
    with pytest.raises(UsageError):
        live_law_from_dict(data)


@pytest.mark.parametrize(
    ("schedule", "data"),
    [
        (Schedule(Time.parse("10ba"), None), {"update_interval": "10ba"}),
        (Schedule(None, Time.parse("1ep")), {"update_interval": "every", "start": "1ep"}),
    ],
)
def test_a_schedule_is_text_and_read_again(schedule: Schedule, data: dict[str, str]):
    """A start of 0 is not written."""
    assert schedule.to_dict() == data
    assert Schedule.from_dict(data) == schedule
