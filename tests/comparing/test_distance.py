"""Distances of values that are not finite, or that have no direction."""

from __future__ import annotations

import math

import pytest

from ema_cli.cli.comparison_facts import comparison_facts
from ema_cli.comparing.distance import DistanceSums
from tests.comparing.models import compare_values


def test_nan_is_reported():
    """A NaN makes the distances NaN, is counted on its side, and is null in JSON with a warning beside it."""
    found = compare_values([math.nan, 1, 2], [0, 1, math.inf])
    assert found.total.non_finite == (1, 1)
    assert math.isnan(found.total.distance.distance)
    told = comparison_facts(found)
    assert told["total"]["relative_distance"] is None
    assert told["total"]["non_finite"] == {"a": 1, "b": 1}
    assert told["warnings"] == ["'x.weight' holds NaN or infinity: 1 in A, 1 in B"]


def test_infinities_that_both_have_do_not_count():
    """An attention mask of -inf in both is no difference; one in one of them only is."""
    found = compare_values([-math.inf, 3, 0], [-math.inf, 0, 4])
    assert found.total.distance.distance == 5
    assert found.total.distance.norm_one == 3
    assert found.total.non_finite == (0, 0)
    assert compare_values([-math.inf, 3], [math.inf, 3]).total.non_finite == (1, 1)


def test_nothing_is_relative_to_zero_nor_has_its_direction():
    """Relative to 0 there is no distance, but where both are 0; nothing has the direction of 0."""
    found = compare_values([1, 0], [0, 0]).total.distance
    assert (found.relative, found.cosine, found.distance) == (None, None, 1)
    assert compare_values([0, 0], [0, 0]).total.distance.relative == 0
    assert compare_values([1, 2], [-1, -2]).total.distance.cosine == pytest.approx(-1, abs=1e-15)


def test_sums_of_nothing():
    """The sums of no tensor are zero, and all of it is equal."""
    assert DistanceSums.zero(2).distances()[1].distance == 0
    assert DistanceSums.zero(1).equal.all()
