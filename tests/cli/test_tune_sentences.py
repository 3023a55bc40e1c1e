"""What `tune` says while it works."""

from __future__ import annotations

from ema_cli.cli.tune_sentences import Pace


def test_the_time_left_is_told_where_it_is_long():
    """From the pace so far; nothing of less than a minute, and nothing at the end."""
    times = iter([0.0, 100.0, 260.0, 300.0, 330.0, 340.0])
    pace = Pace(5, lambda: next(times))
    said = [pace.after_another() for _ in range(5)]
    assert said == [" (1 of 5, about 7 min left)", " (2 of 5, about 7 min left)", " (3 of 5, about 4 min left)",
                    " (4 of 5, about 2 min left)", ""]  # fmt: skip
    quick = iter([0.0, 5.0])
    assert Pace(9, lambda: next(quick)).after_another() == ""
