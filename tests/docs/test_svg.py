"""Charts put each value where the axes say, and equal data gives equal text."""

from __future__ import annotations

import dataclasses
import re

import pytest

from scripts.pages.svg import Chart

CHART = Chart("Title & more", "x", "y", {"line": [(0, 0), (5, 10), (10, 5)]}, range(0, 11, 5), range(0, 11, 5))


def test_the_ends_of_the_axes_are_the_ends_of_the_frame() -> None:
    """The middle of a scale lies in the middle of it; larger values lie higher, so at a smaller y."""
    assert CHART.x(5) == (CHART.x(0) + CHART.x(10)) / 2
    assert CHART.y(10) < CHART.y(5) < CHART.y(0)


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    """From 1 to 10 as far as from 10 to 100."""
    chart = dataclasses.replace(CHART, x_ticks=(1, 10, 100), log=True)
    assert chart.x(10) - chart.x(1) == pytest.approx(chart.x(100) - chart.x(10))


@pytest.mark.parametrize("bars", [False, True])
def test_each_point_is_drawn_and_text_is_escaped(bars: bool) -> None:
    """A dot or a bar for each point."""
    text = dataclasses.replace(CHART, bars=bars).svg()
    assert len(re.findall(r'width="8" height' if bars else "<circle", text)) == 3
    assert "Title &amp; more" in text
    assert text == dataclasses.replace(CHART, bars=bars).svg()
