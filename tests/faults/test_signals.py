"""Ctrl-C, SIGTERM and SIGHUP at every call of the publishing, and at random moments."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.harness import (
    FOLDER_FORCE,
    INJECTED,
    PROCESSORS,
    SCENARIOS,
    Bench,
    Outcome,
    Point,
    Scenario,
    each,
    each_scenario,
    litter,
    needs_strace,
    one_of_each_kind,
    publishing,
    read_state,
)

pytestmark = pytest.mark.slow

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check_ended(bench: Bench, scenario: Scenario, left: Outcome, number: int) -> None:
    """Check what a run left that got the signal: its code, or its death where there was nothing to tidy up."""
    told = f"exit {left.code}, {left.err!r}, {left.litter}"
    assert left.code in (0, 128 + number, -number), told
    assert left.err in ("", "interrupted, nothing written\n", "interrupted; what was written is whole\n"), told
    assert left.litter == [], told
    old, new = bench.old(scenario), bench.new(scenario)
    assert left.state in (old, new), told
    assert left.state == old or "nothing written" not in left.err, told
    assert left.state == new or left.code, told


@needs_strace
@each_scenario
def test_a_signal_at_each_call_leaves_no_litter(bench: Bench, tmp_path: Path, scenario: Scenario, full: bool):
    """From the making of the staging folder to its removal, calls that set up handlers and wait for threads too."""
    points = bench.record(bench.place(tmp_path / "record", scenario), scenario)
    if scenario != FOLDER_FORCE:
        late = publishing(points)
        points = [point for point in points if point.call == "rt_sigaction" or point in late]
    # How often threads wait for each other, and when memory is asked for, differs from run to run; and a thread that
    # ends takes no more signals.
    unsure = ("brk", "exit", "futex", "madvise", "mmap", "mprotect", "restart_syscall")
    points = [point for point in points if point.call not in unsure and point.names != ("memory",)]
    points = points if full else one_of_each_kind(points)
    shift = SCENARIOS.index(scenario)  # so that over all scenarios each place has each signal
    states = []

    def check(at: int, point: Point) -> None:
        number = ENDING[(at + shift) % 3]
        place = bench.place(tmp_path / f"{at:03}", scenario)
        left = bench.inject(place, scenario, point, f"signal={number.name}")
        check_ended(bench, scenario, left, number)
        assert left.code != 0
        assert point.phase == "before" or left.state == bench.new(scenario)
        states.append(left.state)

    each(points, check)
    assert bench.old(scenario) in states
    assert bench.new(scenario) in states


def moments(seed: int, count: int, lifetime: float) -> list[float]:
    """Return delays for `count` signals: one at a random moment of each equal part of the lifetime, shuffled."""
    source = random.Random(seed)
    delays = [(part + source.random()) / count * lifetime for part in range(count)]
    source.shuffle(delays)
    return delays


def test_signals_at_random_moments_of_the_work(bench: Bench, tmp_path: Path, full: bool):
    """Modules are imported already, so that most moments are those of the averaging."""
    began = time.monotonic()
    for number in range(5):
        assert bench.start(bench.place(tmp_path / f"whole-{number}", FOLDER_FORCE), FOLDER_FORCE).code == 0
    lifetime = (time.monotonic() - began) / 5
    # The last come when all is done, however busy the machine is.
    delays = [*moments(20240917, 360 if full else 48, 1.2 * lifetime), *3 * [20 * lifetime]]
    faults = [(ENDING[at % 3], SCENARIOS[at // 3 % len(SCENARIOS)], delay) for at, delay in enumerate(delays)]
    codes = set()

    def check(at: int, fault: tuple[signal.Signals, Scenario, float]) -> None:
        number, scenario, delay = fault
        place = bench.place(tmp_path / f"{at:03}", scenario)
        left = bench.start(place, scenario, number=number, delay=delay)
        codes.add(left.code)
        INJECTED["signal at a random moment"] += 1
        check_ended(bench, scenario, left, number)

    each(faults, check)
    assert {0, 130, 143, 129} <= codes


def test_signals_at_random_moments_from_the_start(bench: Bench, tmp_path: Path, full: bool):
    """A process of its own, from its birth: no traceback once the handlers are there."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = bench.command(FOLDER_FORCE)

    def start(place: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    lifetimes = []
    for number in range(3):
        began = time.monotonic()
        with start(bench.place(tmp_path / f"whole-{number}", FOLDER_FORCE)) as process:
            process.communicate()
        assert process.returncode == 0
        lifetimes.append(time.monotonic() - began)
    lifetime = statistics.median(lifetimes) * (1 if PROCESSORS == 1 else 1.2)
    count = 60 if full else 12
    faults = [(ENDING[at % 3], delay) for at, delay in enumerate(moments(20240918, count, lifetime))]
    early = []

    def check(at: int, fault: tuple[signal.Signals, float]) -> None:
        number, delay = fault
        place = bench.place(tmp_path / f"{at:03}", FOLDER_FORCE)
        with start(place) as process:
            time.sleep(delay)
            process.send_signal(number)
            _, err = process.communicate()
        INJECTED["signal at a random moment"] += 1
        if number == signal.SIGINT and "Traceback" in err and "/ema_cli/cli/app.py" not in err:
            # Python was starting, or importing the package that holds the handlers: nobody can prevent it.
            early.append(delay)
            assert list(place.iterdir()) == [place / FOLDER_FORCE.output]
            return
        left = Outcome(process.returncode, err, read_state(place / FOLDER_FORCE.output), litter(place))
        check_ended(bench, FOLDER_FORCE, left, number)

    each(faults, check)
    assert len(early) <= count // 6
