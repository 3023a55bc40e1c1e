"""A tuning that is killed goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import write_torch_run

pytestmark = pytest.mark.slow

# A valley around 333ba. It writes down each call, and at one of them kills who has started it.
EVALUATION = """
import math, os, signal
name = os.environ["EMA_HALF_LIFE"]
calls = open("calls", "a+")
calls.seek(0)
if os.environ.get("KILL_AT") == str(len(calls.readlines())):
    os.remove("calls")
    os.kill(os.getppid(), signal.SIGKILL)
print(name, file=calls)
print(9 if name == "last" else math.log(float(name[:-2]) / 333) ** 2)
"""
COMMAND = f"{sys.executable} -ISc {shlex.quote(EVALUATION)} {{path}}"
ARGUMENTS = ["tune", "ckpts", "--between", "50ba", "5000ba", "--tries", "6", "-o", "best", "--force", "--quiet"]
Kept = dict[str, bytes]


def tune(folder: Path, kill_at: int = 0, **environment: str) -> tuple[int, str]:
    """Tune once; return the exit code, and what was printed."""
    program = [sys.executable, "-m", "tests.tuning.killed", str(kill_at)]
    done = subprocess.run(
        [*program, *ARGUMENTS, "--eval", COMMAND],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    deadline = time.monotonic() + 30
    while is_somebody_in(folder) and time.monotonic() < deadline:  # an evaluation outlives who is killed
        time.sleep(0.01)
    return done.returncode, done.stdout


def is_somebody_in(folder: Path) -> bool:
    """Return whether a process works in a folder."""
    for process in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if process.readlink() == folder:
                return True
    return False


def start(folder: Path) -> Path:
    """Make a run of ten checkpoints; return its folder."""
    write_torch_run(folder / "ckpts", range(100, 1001, 100))
    return folder


def kept(folder: Path) -> Kept:
    """Return all that a tuning leaves, but for what the evaluations printed."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".out", ".err"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "calls"}


def calls(folder: Path) -> list[str]:
    """Return the names of the candidates that were evaluated since the last time that this was asked."""
    path = folder / "calls"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_killed_at_any_change_of_a_file_it_ends_as_if_it_had_not_been(tmp_path: Path, full: bool):
    """Before, between and after result and journal, while candidates are made, and while the winner is published.

    What is in the journal is not evaluated again; then all files are equal, the journal too, and nothing else is left.
    """
    whole = start(tmp_path / "whole")
    code, out = tune(whole)
    assert code == 0
    every, changes = calls(whole), int(out.rpartition("changes")[2])
    expected = kept(whole)
    # The first ones make folder and journal; the last ones publish the winner, and remove the candidates.
    few = [changes // 3, changes - 8, changes - 3]
    points = range(1, changes + 1) if full else few
    for number in points:
        folder = start(tmp_path / str(number))
        assert tune(folder, number)[0] == -signal.SIGKILL
        before = calls(folder)
        journal = folder / "best.tune" / "tune.jsonl"
        known = journal.read_bytes().count(b"values") if journal.exists() else 0
        assert before == every[: len(before)]
        # One result may be on its way into the journal, while the next evaluation runs.
        assert len(before) - 2 <= known <= len(before), number
        assert tune(folder)[0] == 0
        assert calls(folder) == every[known:], number
        assert kept(folder) == expected, number


@pytest.mark.parametrize("number", [0, 3, 5])
def test_killed_while_it_evaluates_only_that_evaluation_is_repeated(number: int, tmp_path: Path):
    """The first one, one of the grid, one of the search; and the one before it, where that was not written down."""
    whole = start(tmp_path / "whole")
    assert tune(whole)[0] == 0
    every = calls(whole)
    folder = start(tmp_path / "killed")
    assert tune(folder, KILL_AT=str(number))[0] == -signal.SIGKILL
    assert calls(folder) == []  # which are removed by who kills
    known = (folder / "best.tune" / "tune.jsonl").read_bytes().count(b"values")
    # One result may be on its way into the journal, while the next evaluation runs.
    assert number - 1 <= known <= number
    assert tune(folder)[0] == 0
    assert calls(folder) == every[known:]
    assert kept(folder) == kept(whole)
