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


def test_quick_reads_want_no_more(clock: Clock):
    """Reads that take as long as from a local disk are left alone, however many there are."""
    watched = Pace()
    watched.note(1000, 0.001)
    clock.now = 0.1
    assert not watched.wants_more()


def test_slow_reads_want_more_as_long_as_that_helps(clock: Clock):
    """Reads of 20 ms ask for more at once; when twice as many were no faster, that is the end of it."""
    watched = Pace()
    for reads, expected in ((10, True), (20, True), (40, True), (41, False), (41, False)):
        watched.note(reads, 0.02)
        clock.now += 0.1
        assert watched.wants_more() is expected


def test_no_reads_tell_nothing(clock: Clock):
    """Where nothing was read since the last look, nothing is decided, and the time counts for the next."""
    watched = Pace()
    clock.now = 0.1
    assert not watched.wants_more()
    watched.note(4, 0.3)
    clock.now = 0.4
    assert watched.wants_more()
