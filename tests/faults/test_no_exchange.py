"""Where the system cannot exchange two things in one step: an old output that was set aside is never lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.harness import (
    FILE,
    FILE_BARE,
    FILE_FORCE,
    FOLDER,
    FOLDER_FORCE,
    Bench,
    Point,
    Scenario,
    each,
    files_only,
    litter,
    needs_strace,
    one_of_each_kind,
    publishing,
    read_state,
    verified,
)

pytestmark = [pytest.mark.slow, needs_strace]

UNSUPPORTED = "--inject=renameat2:error=ENOSYS"
FAULTS = ("error=EIO", "signal=KILL", "signal=TERM")


def record(bench: Bench, place: Path, scenario: Scenario, renames: int) -> list[Point]:
    """Return the calls of the publishing, among which are so many renames."""
    points = files_only(bench.record(bench.place(place, scenario), scenario, UNSUPPORTED))
    points = [point for point in publishing(points) if point.call != "renameat2"]
    assert len([point for point in points if point.call == "rename"]) == renames
    return points


def check_ended(left_code: int, what: str) -> None:
    """Check how a run ended that could tidy up."""
    assert left_code in ((0, 5) if what == "error=EIO" else (128 + signal.SIGTERM,))


def test_an_error_or_a_kill_at_each_call(bench: Bench, tmp_path: Path, full: bool):
    """Between the two renames nothing is at the target; an error there, or the next run, puts the old output back."""
    points = record(bench, tmp_path / "record", FOLDER_FORCE, renames=2)
    first = next(at for at, point in enumerate(points) if point.call == "rename")
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
                assert left.state == (old if points.index(point) <= first else new)
                bench.run_next(place, FOLDER_FORCE)
            return
        assert left.state in (old, new)
        assert left.litter == [] or point.phase == "cleanup"
        check_ended(left.code, what)

    chosen = points if full else one_of_each_kind(points)
    each([(point, fault) for point in chosen for fault in FAULTS], check)
    assert between


# Of each of two that lie beside the file: the old one aside, the new one in its place. Then the file.
@pytest.mark.parametrize(("scenario", "renames"), [(FILE, 3), (FILE_FORCE, 5), (FILE_BARE, 3)], ids=str)
def test_files_beside_a_killed_output_come_back_with_the_next_run(
    bench: Bench, tmp_path: Path, scenario: Scenario, renames: int, full: bool
):
    """After a kill it may be missing beside the old file, until the next run in that folder; it is never lost."""
    points = record(bench, tmp_path / "record", scenario, renames)
    old, new = bench.old(scenario) or {}, bench.new(scenario) or {}
    missing = []

    def check(at: int, fault: tuple[Point, str]) -> None:
        point, what = fault
        place = bench.place(tmp_path / f"{at:03}", scenario)
        options = [f"--trace={point.call},renameat2", UNSUPPORTED]
        left = bench.inject(place, scenario, point, what, *options)
        found = left.state or {}
        if what != "signal=KILL":
            assert found in (old, new)
            assert left.litter == [] or point.phase == "cleanup"
            check_ended(left.code, what)
            return
        assert left.code == -signal.SIGKILL
        if point.phase not in ("before", "commit"):
            assert found == new
        else:
            assert found.get("") == old.get("")
            assert (verified(place / scenario.output) == []) == (found in ({}, old))
            lost = old.keys() - found.keys()
            missing.extend(lost)
            assert bench.start(place, FOLDER).code == 0  # whatever the next run writes there
            back = read_state(place / scenario.output) or {}
            assert {name: back[name] for name in lost} == {name: old[name] for name in lost}
            assert all(back[name] in (old.get(name), new.get(name)) for name in back)
            assert litter(place) == []
        bench.run_next(place, scenario)

    chosen = points if full else one_of_each_kind(points)
    each([(point, fault) for point in chosen for fault in FAULTS], check)
    assert bool(missing) == scenario.force
