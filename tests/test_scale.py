"""The simulation of many machines: its page shows what it gives, and it reckons as it says."""

from __future__ import annotations

import pytest

from scripts import scale
from tests.docs.pages import DOCS


def test_the_page_shows_what_the_script_prints():
    """The table of the page is that of `scripts/scale.py`."""
    page = (DOCS / "explanation" / "scale.md").read_text("utf-8")
    assert page.split("scripts/scale.py`. -->\n\n")[1].split("\n<!-- Until here")[0] == scale.table()


def test_each_slot_takes_the_next_task():
    """Two slots: 3 and then 1 beside 2 and then 2, so that all ends at 4."""
    assert scale.finish([3, 2, 2, 1], 2) == 4
    assert scale.finish([1.0] * 10, 4) == 3


@pytest.mark.parametrize("place", [scale.STORE, scale.FILES])
def test_tasks_make_the_whole_output(place: scale.Place):
    """All bytes, in shards or in stretches of at most 1 GiB."""
    tasks = scale.tasks_of(place)
    assert sum(tasks) == scale.MODEL_BYTES
    assert max(tasks) == (scale.SHARD_BYTES if place.is_store else 1 << 30)
