"""Where the system cannot exchange two folders in one step: an old output that was set aside is never lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.harness import FILE, FOLDER_FORCE, Bench, Point, each, files_only, litter, needs_strace

pytestmark = [pytest.mark.slow, needs_strace]

UNSUPPORTED = "--inject=renameat2:error=ENOSYS"
RENAMES = 2  # the old output aside, the new one in its place


def test_an_error_or_a_kill_at_each_call(bench: Bench, tmp_path: Path):
    """Between the two renames nothing is at the target; an error there, or the next run, puts the old output back."""
    points = files_only(bench.record(bench.place(tmp_path / "record", FOLDER_FORCE), FOLDER_FORCE, UNSUPPORTED))
    points = [point for point in points if point.call != "renameat2"]
    renames = [point for point in points if point.call == "rename"]
    assert len(renames) == RENAMES
    late = points.index(renames[0])
    faults = [(point, fault) for point in points[late - 3 :] for fault in ("error=EIO", "signal=KILL", "signal=TERM")]
    between = []
    old, new = bench.old(FOLDER_FORCE), bench.new(FOLDER_FORCE)

    def check(at: int, fault: tuple[Point, str]) -> None:
        point, what = fault
        place = bench.place(tmp_path / f"{at:03}", FOLDER_FORCE)
        options = [f"--trace={point.call},renameat2", UNSUPPORTED]
        left = bench.inject(place, FOLDER_FORCE, point, what, *options)
        if what == "signal=KILL":
            assert left.code == -signal.SIGKILL
            if left.state is None:
                between.append(point)
                # Whatever the next run writes there, what was at the target comes back first.
                assert bench.start(place, FILE).code == 0
                assert bench.start(place, FOLDER_FORCE, "--trace=none", half_life="1000ba").state == old
                assert litter(place) == []
            else:
                assert left.state == (old if points.index(point) <= late else new)
                bench.run_next(place, FOLDER_FORCE)
            return
        assert left.state in (old, new)
        assert left.litter == [] or point.phase == "cleanup"
        assert left.code in ((0, 5) if what == "error=EIO" else (128 + signal.SIGTERM,))

    each(faults, check)
    assert between
