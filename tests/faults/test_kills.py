"""SIGKILL at each call between the making of the staging folder and its removal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.harness import (
    WHOLE,
    Bench,
    Point,
    Scenario,
    each,
    each_scenario,
    files_only,
    needs_strace,
    one_of_each_kind,
    publishing,
)

pytestmark = [pytest.mark.slow, needs_strace]


@each_scenario
def test_a_kill_at_each_call_leaves_the_old_output_or_the_new(
    bench: Bench, tmp_path: Path, scenario: Scenario, full: bool
):
    """Killed before a call: the output is the old one up to the commit, the new one after; the next run tidies up.

    Beside a file that is the old one, what belongs to the new one may lie already, which `verify` tells.
    """
    points = files_only(bench.record(bench.place(tmp_path / "record", scenario), scenario))
    points = points if scenario in WHOLE else publishing(points)
    points = points if full else one_of_each_kind(points)

    def check(number: int, point: Point) -> None:
        place = bench.place(tmp_path / f"{number:03}", scenario)
        left = bench.inject(place, scenario, point, "signal=KILL")
        assert left.code == -signal.SIGKILL
        # strace kills before the call is made.
        bench.check_killed(place, scenario, left.state, committed=point.phase not in ("before", "commit"))
        assert len(left.litter) <= 1
        bench.run_next(place, scenario)

    each(points, check)
