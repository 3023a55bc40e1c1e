"""How far apart checkpoints are: the usual distance, gaps, and whether a run is regular."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ema_cli.runs.spacing import Gap, Spacing, measure_spacing


def measured(*clocks: str) -> Spacing:
    """Measure clocks that are written as decimal numbers."""
    spacing = measure_spacing([Fraction(clock) for clock in clocks])
    assert spacing is not None
    return spacing


def test_the_usual_distance_is_the_most_frequent_and_a_gap_is_half_as_long_again():
    """1.5 is a gap where 1 is usual, 1.4 is none; two checkpoints of one clock count as one."""
    spacing = measured("1", "2", "3", "3", "4.5", "5.9", "6.9")
    assert spacing.usual == 1
    assert spacing.gaps == (Gap(3, 4, Fraction(3, 2)),)


def test_a_run_that_ends_between_two_saves_is_regular():
    """The last step may be shorter: `inspect` and the page of `report` agree on 100, 200, 300, 350."""
    assert measured("100", "200", "300", "350") == Spacing(Fraction(100), True, ())


@pytest.mark.parametrize(
    ("clocks", "regular"),
    [
        (("10", "20", "30"), True),
        (("10", "20", "25", "35"), False),  # a shorter step in the middle
        (("10", "20", "30", "45"), False),  # a longer last one
        (("0.1", "0.2", "0.3", "0.3", "0.4"), True),  # exact, where binary floats would round
    ],
)
def test_a_run_is_regular_where_all_but_a_shorter_last_step_are_equal(clocks: tuple[str, ...], regular: bool):
    """Only the last step may differ, and only by being shorter."""
    assert measured(*clocks).regular is regular


@pytest.mark.parametrize("clocks", [[], [Fraction(5)], [Fraction(5), Fraction(5)]])
def test_without_two_clocks_there_is_no_distance(clocks: list[Fraction]):
    """No checkpoint, one, or all of one clock."""
    assert measure_spacing(clocks) is None
