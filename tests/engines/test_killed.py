"""The one who asks is killed between what workers write and what it publishes: the old release is there, or the new."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.engines.lost import wait_for
from tests.engines.runs import RUNS, files_below

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
Files = dict[str, bytes]


@dataclass(frozen=True)
class Place:
    """A folder to write into, beside a run; the files of an older average there, if any, and of the new one."""

    folder: Path
    target: str
    engine: str
    old: Files
    new: Files

    @property
    def said(self) -> Path:
        """Return the file of what was said."""
        return self.folder.with_name("said")

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Begin the average in a process of its own; see `tests.engines.killed`."""
        command = [sys.executable, "-m", "tests.engines.killed", *arguments(self.target, "200ba"), "--on", self.engine]
        own = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
        with self.said.open("w") as said:  # no pipe: a worker that stands still would keep that open
            return subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=said
            )

    def run(self, **environment: str) -> tuple[int, str]:
        """Make the average; return the exit code and what was said."""
        code = self.start(**environment).wait(300)
        said = self.said.read_text()
        # Of a process that was killed while it started others, Python's own words in these are no matter.
        assert code < 0 or "Traceback" not in said, said
        return code, said

    def is_left_alone(self) -> bool:
        """Return whether no process works here."""
        for process in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):
                if process.readlink() == self.folder:
                    return False
        return True


def arguments(target: str, half_life: str) -> list[str]:
    """Return the command, which replaces what is there. A folder has shards, which are made whole; a file is not."""
    shards = ["--max-shard-size", "4kB"] if "." not in target else []
    return ["average", "../run", "--name-clock", "ba", "--half-life", half_life, "-o", target, "--force", *shards]


def make_place(tmp_path: Path, target: str, engine: str, cli: Cli, *, older: bool) -> Place:
    """Return a place with a run beside it, and an older average in it, if there is to be one."""
    RUNS["one file"](tmp_path / "run")
    made = []
    for half_life in ("1000ba", "200ba"):
        folder = tmp_path / half_life
        folder.mkdir()
        assert cli(*arguments(target, half_life), cwd=folder).code == 0
        made.append(files_below(folder))
    return Place(tmp_path / "out", target, engine, made[0] if older else {}, made[1])


def fill(place: Place) -> None:
    """Make the folder anew, with the older average in it."""
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir()
    for name, content in place.old.items():
        path = place.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def check_left(place: Place, cli: Cli) -> Files:
    """Check what is there: the old release or the new one, or a mix of files that `verify` tells; return it."""
    left = {name: content for name, content in files_below(place.folder).items() if not name.startswith(".ema-cli-")}
    for name, content in left.items():
        assert content in (place.old.get(name), place.new.get(name)), name
    is_whole = left in (place.old, place.new)
    if "." not in place.target:
        assert is_whole, "a folder is exchanged as a whole"
    said = cli("verify", place.target, cwd=place.folder)
    assert (said.code == 0) == (is_whole and bool(left)), (left.keys(), said)
    return left


def check_killed(place: Place, at: str, cli: Cli) -> int:
    """Kill the one who asks at a change of a file; return its exit code. The next run makes the new release."""
    fill(place)
    code, _ = place.run(KILL_AT=at)
    wait_for(place.is_left_alone)  # workers end by themselves
    check_left(place, cli)
    assert (again := place.run())[0] == 0, (at, again)
    assert files_below(place.folder) == place.new, "and removes all else"
    return code


TARGETS = ["x.safetensors", "release"]
ENGINES = ["processes=2", "dask:local=2"]


@pytest.mark.parametrize(("target", "at"), [("x.safetensors", "fsync 1"), ("release", "rename 1")])
def test_killed_before_the_disk_has_what_workers_wrote(tmp_path: Path, target: str, at: str, cli: Cli):
    """Or before the folder gets its place: the old release is there, and the same command makes the new one."""
    place = make_place(tmp_path, target, "processes=2", cli, older=True)
    assert check_killed(place, at, cli) == -signal.SIGKILL


@pytest.mark.full
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_any_change(tmp_path: Path, engine: str, target: str, older: bool, cli: Cli):
    """Of a file or a folder, by the one who asks, from the first to the last."""
    pytest.importorskip("distributed")
    place = make_place(tmp_path, target, engine, cli, older=older)
    numbers = count(1)
    while check_killed(place, f"any {next(numbers)}", cli) != 0:
        pass
    assert next(numbers) > 25


def check_stood_still(place: Place, at: str, cli: Cli) -> bool:
    """Let a worker stand still at a change of its own, and kill the one who asks; return whether it came so far.

    The same command makes the new release meanwhile. Then the worker goes on, and changes nothing.
    """
    fill(place)
    stopped = place.folder.parent / "stopped"
    stopped.unlink(missing_ok=True)
    process = place.start(STOP_AT=at, STOPPED=str(stopped))
    wait_for(lambda: (stopped.exists() and stopped.read_text()) or process.poll() is not None)
    if not stopped.exists():
        assert process.wait() == 0
        return False
    worker = int(stopped.read_text())
    try:
        process.kill()
        process.communicate()
        check_left(place, cli)
        assert (again := place.run())[0] == 0, (at, again)
        assert files_below(place.folder) == place.new
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_for(place.is_left_alone)
    assert files_below(place.folder) == place.new, at
    assert cli("verify", place.target, cwd=place.folder).code == 0
    return True


def test_a_worker_that_stood_still_makes_no_hidden_folder_anew(tmp_path: Path, cli: Cli):
    """It was about to make a folder in that one, which was removed meanwhile: nobody would come for what it left."""
    place = make_place(tmp_path, "release", "processes=2", cli, older=True)
    assert check_stood_still(place, "mkdir 1", cli)


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_that_stood_still_while_others_published(tmp_path: Path, engine: str, target: str, cli: Cli):
    """At any change of its own: when it goes on, the one who asked for it is dead, and it leaves nothing."""
    pytest.importorskip("distributed")
    place = make_place(tmp_path, target, engine, cli, older=True)
    numbers = count(1)
    while check_stood_still(place, f"any {next(numbers)}", cli):
        pass
    assert next(numbers) > 8
