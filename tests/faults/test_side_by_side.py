"""Two runs at a time in one folder, and what a killed one left there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.harness import (
    FILE,
    FILE_FORCE,
    FOLDER,
    FOLDER_FORCE,
    INJECTED,
    SCENARIOS,
    Bench,
    Outcome,
    Scenario,
    litter,
    needs_strace,
    read_state,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def rounds(full: bool) -> int:
    """How often two runs meet."""
    return 10 if full else 2


def together(bench: Bench, place: Path, one: Scenario, other: Scenario) -> list[Outcome]:
    """Run two scenarios in one folder at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda scenario: bench.start(place, scenario), (one, other)))


@pytest.mark.parametrize(("one", "other"), [(FILE, FOLDER), (FILE_FORCE, FOLDER_FORCE)], ids=["new", "force"])
def test_two_targets_in_one_folder(bench: Bench, tmp_path: Path, one: Scenario, other: Scenario, rounds: int):
    """Both are done, and neither takes the other's staging folder for litter."""
    for number in range(rounds):
        place = bench.place(tmp_path / f"{number:03}", one)
        codes = [left.code for left in together(bench, place, one, other)]
        INJECTED["pair side by side"] += 1
        assert codes == [0, 0]
        assert [read_state(place / each.output) for each in (one, other)] == [bench.new(one), bench.new(other)]
        assert litter(place) == []


@pytest.mark.parametrize(
    ("scenario", "there"), [*((each, False) for each in SCENARIOS), (FILE_FORCE, True), (FOLDER_FORCE, True)], ids=str
)
def test_one_target_for_both(bench: Bench, tmp_path: Path, scenario: Scenario, there: bool, rounds: int):
    """Without force one wins and the other says that it exists; with force both are done; the output is whole."""
    for number in range(rounds):
        place = bench.place(tmp_path / f"{number:03}", scenario) if there else tmp_path / f"{number:03}"
        place.mkdir(exist_ok=True)
        both = together(bench, place, scenario, scenario)
        INJECTED["pair side by side"] += 1
        assert sorted(left.code for left in both) == ([0, 0] if scenario.force else [0, 5]), both
        assert all("exists already" in left.err for left in both if left.code)
        assert read_state(place / scenario.output) == bench.new(scenario)
        assert litter(place) == []


def test_two_averages_for_one_file(bench: Bench, tmp_path: Path, rounds: int):
    """With force, of two half-lives: manifest and sums are those of the file, whichever came last."""
    first = set()
    for number in range(2 * rounds):
        place = bench.place(tmp_path / f"{number:03}", FILE_FORCE)
        with ThreadPoolExecutor(2) as pool:
            half_lives = ("10ba", "1000ba")
            codes = list(
                pool.map(lambda half_life, at=place: bench.start(at, FILE_FORCE, half_life=half_life).code, half_lives)
            )
        INJECTED["pair side by side"] += 1
        assert codes == [0, 0]
        state = read_state(place / FILE_FORCE.output)
        assert state in (bench.old(FILE_FORCE), bench.new(FILE_FORCE))
        first.add(state == bench.old(FILE_FORCE))
        assert litter(place) == []


@needs_strace
def test_a_publication_waits_for_another(bench: Bench, tmp_path: Path):
    """One stands still between its manifest and its file, and another that would get in between waits for it."""
    place = bench.place(tmp_path / "place", FILE_FORCE)
    slow = "rename:delay_enter=2s:when=1"
    with traced(bench, place, FILE_FORCE, slow) as sleeper:
        beside = place / f"{FILE_FORCE.output}.manifest.json"
        wait_until(lambda: beside.read_bytes() != (bench.old(FILE_FORCE) or {})[".manifest.json"])
        assert bench.start(place, FILE_FORCE, half_life="1000ba").code == 0
        assert sleeper.poll() is not None or sleeper.wait(60) == 0
    assert sleeper.returncode == 0
    assert read_state(place / FILE_FORCE.output) == bench.old(FILE_FORCE)
    assert litter(place) == []


def traced(bench: Bench, place: Path, scenario: Scenario, fault: str) -> subprocess.Popen[str]:
    """Start a process of its own under strace."""
    call = fault.partition(":")[0]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, f"--trace={call}", f"--inject={fault}"]
    return subprocess.Popen(
        [*strace, *bench.command(scenario)], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(place: Path) -> str:
    """Return the name of the staging folder once it is there."""
    wait_until(lambda: bool(litter(place)))
    return litter(place)[0]


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something to happen."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@needs_strace
def test_a_stopped_run_keeps_its_staging_folder_and_a_killed_one_does_not(bench: Bench, tmp_path: Path):
    """The next run leaves a living process its folder, however long it sleeps, and removes a dead one's."""
    place = bench.place(tmp_path / "place", FOLDER_FORCE)
    with traced(bench, place, FOLDER_FORCE, "fsync:signal=STOP:when=2") as sleeper:
        name = wait_for(place)
        with traced(bench, place, FILE, "fsync:signal=KILL:when=2") as killed:
            killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        INJECTED["KILL at a call"] += 1
        assert len(litter(place)) == 2
        assert bench.start(place, FILE).code == 0
        assert litter(place) == [name]
        children = Path(f"/proc/{sleeper.pid}/task/{sleeper.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGCONT)
        _, err = sleeper.communicate(timeout=60)
    assert sleeper.returncode == 0, err
    assert read_state(place / FOLDER_FORCE.output) == bench.new(FOLDER_FORCE)
    assert litter(place) == []


@needs_strace
@pytest.mark.parametrize("call", ["flock:delay_enter=700ms:when=1", "mkdir:delay_exit=700ms:when=1"])
def test_a_folder_taken_for_litter_before_it_is_locked_is_made_anew(bench: Bench, tmp_path: Path, call: str):
    """Another run removes the folder in the moment before its lock: a new one is made, and both are done."""
    place = bench.place(tmp_path / "place", FOLDER)
    with traced(bench, place, FOLDER, call) as slow:
        name = wait_for(place)
        assert bench.start(place, FILE).code == 0
        assert name not in litter(place)
        _, err = slow.communicate(timeout=60)
    INJECTED["race for a staging folder"] += 1
    assert slow.returncode == 0, err
    assert read_state(place / FOLDER.output) == bench.new(FOLDER)
    assert litter(place) == []
