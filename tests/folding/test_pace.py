"""When more reads at once are worth their threads."""

from __future__ import annotations

import pytest

from ema_cli.folding import pace
from ema_cli.folding.pace import Pace


class Clock:
    """A clock that stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


@pytest.fixture
def watched(clock: Clock) -> Pace:
    """A pace that has what is read first behind it."""
    watched = Pace()
    watched.note(10, 0.02)
    clock.now = 0.5
    assert not watched.wants_more()
    return watched


def test_quick_reads_want_no_more(clock: Clock, watched: Pace):
    """Reads that take as long as from a local disk are left alone, however many there are."""
    watched.note(1000, 0.001)
    clock.now += 0.5
    assert not watched.wants_more()


def test_slow_reads_want_more_as_long_as_that_helps(clock: Clock, watched: Pace):
    """Reads of 20 ms ask for more at once; when twice as many were no faster, that is the end of it."""
    for reads, expected in ((10, True), (20, True), (40, True), (41, False), (41, False)):
        watched.note(reads, 0.02)
        clock.now += 0.5
        assert watched.wants_more() is expected


def test_no_reads_tell_nothing(clock: Clock, watched: Pace):
    """Where nothing was read since the last look, nothing is decided, and the time counts for the next."""
    clock.now += 0.5
    assert not watched.wants_more()
    watched.note(4, 0.3)
    clock.now += 0.2
    assert watched.wants_more()


def test_the_first_reads_of_a_disk_that_reads_ahead_tell_nothing(clock: Clock):
    """The first block of sixteen files waits for what is read ahead of each; the next ones are there at once."""
    watched = Pace()
    watched.note(32, 0.02)
    for tick in range(1, 21):
        clock.now = tick * 0.1
        watched.note(100, 0.0005)
        assert not watched.wants_more()


def test_a_burst_between_quick_reads_asks_for_nothing(clock: Clock, watched: Pace):
    """What is read ahead comes in bursts: reads that wait for one are judged with those around them."""
    watched.note(32, 0.01)
    clock.now += 0.1
    assert not watched.wants_more()
    watched.note(400, 0.0005)
    clock.now += 0.4
    assert not watched.wants_more()


def test_what_counts_as_slow_is_said_by_who_reads(clock: Clock, watched: Pace):
    """A block of a store takes longer than a read of a disk, and is no sign of a slow line."""
    watched.slow_seconds = 0.008
    watched.note(1000, 0.007)
    clock.now = 1.0
    assert not watched.wants_more()
    watched.note(1000, 0.009)
    clock.now = 1.5
    assert watched.wants_more()


@pytest.mark.parametrize(("idle", "expected"), [(0.2, False), (0.3, True), (None, True)])
def test_where_processors_are_busy_no_more_is_read_at_once(
    clock: Clock, watched: Pace, monkeypatch: pytest.MonkeyPatch, *, idle: float | None, expected: bool
):
    """Half a second in which they were idle for less than they must: it is they that the reads wait for."""
    watched.least_idle = 0.5
    seconds = iter([None if idle is None else 7.0, None if idle is None else 7.0 + idle])
    monkeypatch.setattr(pace, "idle_seconds", lambda: next(seconds))
    clock.now += 0.5
    watched.note(1, 1e-6)
    assert not watched.wants_more()
    watched.note(10, 0.02)
    clock.now += 0.5
    assert watched.wants_more() is expected
