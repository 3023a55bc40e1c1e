"""An error of the file system at each call between the making of the staging folder and its removal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.harness import (
    FILE,
    FILE_FORCE,
    INJECTED,
    SCENARIOS,
    WHOLE,
    Bench,
    Outcome,
    Point,
    Scenario,
    State,
    each,
    each_scenario,
    files_only,
    needs_strace,
    one_of_each_kind,
    publishing,
)

pytestmark = [pytest.mark.slow, needs_strace]

ERRORS = ("ENOSPC", "EIO", "EDQUOT")
RENAMES = ("rename", "renameat2")
DECISIVE = ("pwrite64", "fsync", *RENAMES)  # where an error must never pass for success


def check_error(point: Point, left: Outcome, old: State, new: State) -> None:
    """Check what a run left in which the call at `point` failed."""
    told = f"exit {left.code}, {left.err!r}, {left.litter}"
    if point.phase == "cleanup":
        assert (left.code, left.err) == (0, ""), told
        assert left.state == new, told
        return
    assert left.litter == [], told
    if point.phase == "after":
        # The average is in place; what failed is to make sure of it, or a close that matters to nobody.
        assert left.code == (0 if point.call == "close" else 5), told
        assert left.state == new, told
    elif left.code == 0:
        assert point.call not in DECISIVE, told
        assert left.state == new, told
    else:
        of_input = "/run/checkpoint-" in left.err
        assert left.code == (3 if of_input else 5), told
        assert left.state == old, told
    if left.code:
        assert left.err.startswith("error: "), told


def reading_back(points: Sequence[Point]) -> list[Point]:
    """Return the calls that open the finished file, and read its header: they come after those that made it."""
    opened = [at for at, point in enumerate(points) if point.call == "openat" and point.names == (FILE_FORCE.output,)]
    header = [at for at, point in enumerate(points) if point.call == "pread64" and at > opened[1]]
    return [points[at] for at in (opened[1], *header[:2])]


@each_scenario
def test_an_error_at_each_call_leaves_the_old_output_or_the_new(
    bench: Bench, tmp_path: Path, scenario: Scenario, full: bool
):
    """Whatever call fails, and however: exit 5 and the old output, or success and the new; no traceback, no litter."""
    points = files_only(bench.record(bench.place(tmp_path / "record", scenario), scenario))
    points = points if scenario in WHOLE[:4] else publishing(points)
    points = points if full else one_of_each_kind(points)
    shift = SCENARIOS.index(scenario)  # so that over all scenarios each place has each error
    faults = [(point, ERRORS[(at + shift) % 3]) for at, point in enumerate(points)]
    if full:
        faults += [(point, error) for point in points if point.call in DECISIVE for error in ERRORS]
    faults += [(point, "EACCES") for point in points if point.call in RENAMES]

    def check(number: int, fault: tuple[Point, str]) -> None:
        point, error = fault
        place = bench.place(tmp_path / f"{number:03}", scenario)
        left = bench.inject(place, scenario, point, f"error={error}")
        check_error(point, left, bench.old(scenario), bench.new(scenario))
        if left.litter:
            bench.run_next(place, scenario)

    each(faults, check)


def test_an_error_while_the_output_is_read_back(bench: Bench, tmp_path: Path):
    """That the finished file cannot be opened again is an output error like any other."""
    points = files_only(bench.record(bench.place(tmp_path / "record", FILE_FORCE), FILE_FORCE))
    for number, point in enumerate(reading_back(points)):
        left = bench.inject(bench.place(tmp_path / f"{number}", FILE_FORCE), FILE_FORCE, point, "error=EIO")
        assert left.code == 5
        assert left.state == bench.old(FILE_FORCE)


def test_a_read_error_in_an_input_names_the_file(bench: Bench, tmp_path: Path):
    """A bad sector under a header or a tensor: exit 3, the file and nothing written."""
    # The newest, of which most tensors are read: more of the worker's reads than of the main thread's.
    checkpoint = bench.run / "checkpoint-30" / "model.safetensors"
    calls = "preadv,preadv2,pread64"
    threads = set()
    for number in range(1, 20):
        place = bench.place(tmp_path / f"{number:03}", FILE)
        log = place.with_suffix(".log")
        inject = f"--inject={calls}:error=EIO:when={number}"
        left = bench.start(place, FILE, "-o", str(log), "-P", str(checkpoint), f"--trace={calls}", inject)
        if "(INJECTED)" not in log.read_text():
            assert left.code == 0
            break
        INJECTED["read error"] += 1
        readers = {line.partition(" ")[0] for line in log.read_text().splitlines()}
        threads.add("header" if len(readers) == 1 else "tensor")
        assert left.code == 3, f"{number}: {left.err}"
        assert left.err.startswith("error: ")
        assert f"{checkpoint}: cannot be read" in left.err
        assert list(place.iterdir()) == []
    assert threads == {"header", "tensor"}
