"""Disks that are full, and files that may not grow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.faults.harness import (
    FILE,
    FOLDER,
    INJECTED,
    SCENARIOS,
    Bench,
    Scenario,
    each,
    each_form,
    litter,
    read_state,
)

pytestmark = pytest.mark.slow

BLOCK = 4096

LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
os.execv(sys.argv[3], sys.argv[3:])
"""

# As where somebody else takes the space after we looked: the check beforehand sees a disk without end.
UNCHECKED = """
import os, sys, types
from ema_cli.__main__ import main
os.statvfs = lambda path: types.SimpleNamespace(f_bavail=1 << 40, f_frsize=1)
main()
"""


@each_form
def test_a_limit_on_the_size_of_files(bench: Bench, tmp_path: Path, scenario: Scenario, full: bool):
    """Wherever the limit falls, and whether or not SIGXFSZ is ignored: exit 5 and the old output."""
    state = bench.new(scenario)
    assert state is not None
    largest = max(map(len, state.values()))
    hows = ("ignored", "not ignored")
    limits = (0, largest // 2, largest - 1, largest)
    faults = [(limit, how) for limit in limits for how in hows]
    if not full:
        shift = SCENARIOS.index(scenario)
        faults = [(largest // 2, hows[shift % 2]), (largest - 1, hows[1 - shift % 2])]

    def check(at: int, fault: tuple[int, str]) -> None:
        limit, how = fault
        place = bench.place(tmp_path / f"{at:03}", scenario)
        command = [sys.executable, "-c", LIMITED, how, str(limit), *bench.command(scenario)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=60)
        found = read_state(place / scenario.output)
        if limit == largest:
            assert (done.returncode, found) == (0, state), done.stderr
        else:
            INJECTED["size limit"] += 1
            assert done.returncode == 5, done.stderr
            assert "cannot be written: File too large" in done.stderr
            assert "Traceback" not in done.stderr
            assert found == bench.old(scenario)
        assert litter(place) == []

    each(faults, check)


@pytest.fixture(scope="session")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a command that runs another where it may mount."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    place = tmp_path_factory.mktemp("mount")
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        command = ["unshare", *options]
        tried = subprocess.run([*command, "mount", "-t", "tmpfs", "none", place], capture_output=True, text=True)
        if tried.returncode == 0:
            return command
    pytest.skip(f"nothing can be mounted here: {tried.stderr.strip()}")


# $1: the tmpfs' options, $2: where it is mounted, $3: where the result is copied, then the command.
MOUNTED = """
mount -t tmpfs -o "$1" none "$2" && [ ! -e "$3" ] || cp -a "$3/." "$2" || exit 99
disk=$2 kept=$3; shift 3; cd "$disk"
"$@"; code=$?
rm -rf "$kept"; cp -a "$disk" "$kept" || exit 99
exit $code
"""


def run_mounted(
    namespace: list[str], place: Path, options: str, command: list[str]
) -> subprocess.CompletedProcess[str]:
    """Run on a small disk that begins and ends with what is in `place`."""
    disk = place.with_suffix(".disk")
    disk.mkdir()
    shell = [*namespace, "sh", "-c", MOUNTED, "sh", options, str(disk), str(place), *command]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert done.returncode != 99, done.stderr
    assert "Traceback" not in done.stderr
    return done


def fill(place: Path, free: int) -> Path:
    """Leave so many of 64 blocks free."""
    taken = blocks(path.stat().st_size for path in place.rglob("*") if path.is_file())
    (place / "ballast").write_bytes(b"x" * BLOCK * (64 - taken - free))
    return place


def blocks(sizes: Iterable[int]) -> int:
    """Return how many blocks files of these sizes take."""
    return sum(-(-size // BLOCK) for size in sizes)


@each_form
def test_a_disk_without_room_is_refused_beforehand(
    bench: Bench, tmp_path: Path, namespace: list[str], scenario: Scenario
):
    """What is free is asked before anything is written."""
    place = bench.place(tmp_path / "place", scenario)
    done = run_mounted(namespace, fill(place, 0), "size=256k", bench.command(scenario))
    INJECTED["full disk"] += 1
    assert done.returncode == 5, done.stderr
    assert "but 0 are free" in done.stderr
    assert read_state(place / scenario.output) == bench.old(scenario)
    assert litter(place) == []


@each_form
def test_a_disk_that_fills_up_meanwhile(
    bench: Bench, tmp_path: Path, namespace: list[str], scenario: Scenario, full: bool
):
    """However many blocks are left, until there are enough: exit 5, the old output, no litter."""
    command = [sys.executable, "-c", UNCHECKED, *bench.arguments(scenario)]
    codes = []
    enough = blocks(map(len, (bench.new(scenario) or {}).values())) + 1
    for free in range(enough + 1) if full else (0, enough // 2, enough):
        place = fill(bench.place(tmp_path / f"{free}", scenario), free)
        done = run_mounted(namespace, place, "size=256k", command)
        codes.append(done.returncode)
        assert done.returncode in (0, 5), done.stderr
        assert read_state(place / scenario.output) == (bench.old if done.returncode else bench.new)(scenario)
        assert litter(place) == []
        INJECTED["full disk"] += done.returncode == 5
    assert codes == sorted(codes, reverse=True)
    assert {0, 5} == set(codes)


def test_a_disk_without_names(bench: Bench, tmp_path: Path, namespace: list[str], full: bool):
    """A file system that can take no more files, whatever is free: exit 5 from the first of them on."""
    for scenario in (FILE, FOLDER):
        codes = []
        enough = len(bench.new(scenario) or ()) + 3
        for names in range(enough + 1) if full else (0, 1, enough - 1, enough):
            place = bench.place(tmp_path / f"{scenario}-{names}", scenario)
            # One for the folder itself.
            done = run_mounted(namespace, place, f"size=1m,nr_inodes={1 + names}", bench.command(scenario))
            codes.append(done.returncode)
            assert done.returncode in (0, 5), done.stderr
            assert read_state(place / scenario.output) == (bench.old if done.returncode else bench.new)(scenario)
            assert litter(place) == []
            INJECTED["no more names"] += done.returncode == 5
        assert codes == sorted(codes, reverse=True)
        assert {0, 5} == set(codes)
