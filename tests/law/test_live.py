"""The law and the update events of a stored average, as data."""

from __future__ import annotations

from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.law import LiveLaw
from ema_cli.law.laws import HalfLife, Power, Smoothing
from ema_cli.law.live import Schedule, live_law_from_dict, live_law_to_dict
from ema_cli.law.time import Time


@pytest.mark.parametrize(
    ("law", "data"),
    [
        (HalfLife(Time.parse("50ba")), {"half_life": "50ba"}),
        (Smoothing(0.1 + 0.2), {"smoothing": "0.30000000000000004"}),
        (Power(0.1), {"sigma_rel": "0.1"}),
    ],
)
def test_a_live_law_is_text_and_read_again(law: LiveLaw, data: dict[str, str]):
    """Numbers keep all their digits; a width alone is that of the power profile."""
    assert live_law_to_dict(law) == data
    assert live_law_from_dict({"average": "x", **data}) == law


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
