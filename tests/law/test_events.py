"""Update events: which clocks are events, and the gaps between them."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ema_cli.law.events import Events, Gap

FRACTIONS = st.builds(Fraction, st.integers(0, 400), st.sampled_from([1, 2, 3, 10]))


def met(interval: Fraction | int | None, *clocks: Fraction | float) -> list[Gap | None]:
    events = Events(None if interval is None else Fraction(interval))
    return [events.meet(Fraction(clock)) for clock in clocks]


def test_the_first_copy_is_composers():
    """The first copy is the first clock above 0 at or after min(1 unit, interval), and has no gap."""
    nothing = Gap(Fraction(0), 0, Fraction(0))
    assert met(5, 0, 1) == [None, nothing]
    assert met(5, 0, Fraction(1, 2), 3) == [None, None, nothing]
    assert met(Fraction(1, 4), 0, Fraction(1, 8), Fraction(1, 4)) == [None, None, nothing]
    assert met(None, 0, Fraction(1, 1000)) == [None, nothing]


def test_events_are_a_grid_from_the_beginning():
    """With interval 5 and a first copy at 1, the events are 5, 10, 15: not 6, 11, 16."""
    found = met(5, *range(1, 16))
    assert [clock for clock, gap in enumerate(found, 1) if gap] == [1, 5, 10, 15]
    assert [gap.updates for gap in found if gap] == [0, 1, 1, 1]
    assert [gap.elapsed for gap in found if gap] == [0, 4, 5, 5]
    assert [gap.time for gap in found if gap] == [0, 5, 5, 5]


def test_missed_events_count():
    """A clock that has passed several events at once stands for all of them."""
    assert met(5, 1, 17, 19, 20)[1:] == [Gap(Fraction(15), 3, Fraction(16)), None, Gap(Fraction(5), 1, Fraction(3))]


def test_without_an_interval_each_later_clock_is_an_event():
    """The same clock twice is one event, a later one is another."""
    assert [gap is not None for gap in met(None, 1, 1, Fraction(3, 2), 9)] == [True, False, True, True]


@given(
    clocks=st.lists(FRACTIONS, min_size=1).map(sorted),
    interval=st.builds(Fraction, st.integers(1, 50), st.sampled_from([1, 3, 10])),
)
def test_no_event_is_lost_or_counted_twice(clocks: list[Fraction], interval: Fraction):
    """Over a run, the updates between first copy and end are the multiples of the interval between them."""
    events = Events(interval)
    gaps = [(clock, gap) for clock in clocks if (gap := events.meet(clock)) is not None]
    if gaps:
        first, last = gaps[0][0], clocks[-1]
        multiples = sum(1 for n in range(1, int(last / interval) + 1) if first < n * interval <= last)
        assert sum(gap.updates for _, gap in gaps) == multiples
        assert all(gap.updates > 0 for _, gap in gaps[1:])
