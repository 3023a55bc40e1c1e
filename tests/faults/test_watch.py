"""`watch` under SIGKILL at each call from its first staging folder to its end: it goes on with the same bits."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import write_hf_run
from tests.faults.harness import (
    INJECTED,
    TOKEN,
    Bench,
    Point,
    State,
    each,
    files_only,
    needs_strace,
    one_of_each_kind,
    read_log,
    read_state,
    verified,
)

pytestmark = [pytest.mark.slow, needs_strace]

ARGUMENTS = ["watch", "run", "--half-life", "20ba", "--half-life", "50ba", "-o", "out", "--once", "--settle", "0s"]
REST = ["--threads", "1", "--quiet"]
LOOK = re.compile(rb'"look":"[0-9a-f]*"')


class Watch:
    """A run of which two checkpoints are folded, and one is new; and what comes of it."""

    def __init__(self, bench: Bench, folder: Path, options: list[str]) -> None:
        self._bench = bench
        self._arguments = [*ARGUMENTS, *REST, *options]
        self.before = folder / "before"
        self.before.mkdir(parents=True)
        write_hf_run(self.before / "run", [10, 20])
        assert self.start(self.before) == 0
        write_hf_run(self.before / "run", [30])
        self.old = self.state(self.before)
        done = self.place(folder / "done")
        assert self.start(done) == 0
        self.new = self.state(done)
        assert self.old != self.new

    def place(self, folder: Path) -> Path:
        """Make a folder with all as it was before, times of the files included."""
        shutil.copytree(self.before, folder)
        return folder

    def state(self, place: Path) -> tuple[State, State]:
        """Return what is published, and what is kept to go on; but for how the files look, which are copies here."""
        kept = read_state(place / "out.watch") or {}
        same = {name: LOOK.sub(b"", content) for name, content in kept.items()}
        return read_state(place / "out"), same

    def start(self, place: Path, *strace: str) -> int:
        """Watch once, and return the exit code."""
        told = place.with_suffix(".told")
        request = {
            "place": str(place),
            "told": str(told),
            "arguments": self._arguments,
            "strace": strace,
            "signal": 0,
            "delay": 0,
        }
        server = self._bench.take_server()
        try:
            code = ask(server, request)
        finally:
            self._bench.give_server(server)
        assert "Traceback" not in told.read_text(), told.read_text()
        return code

    def record(self, place: Path) -> list[Point]:
        """Return the calls from the making of the first staging folder to the end of the last."""
        log = place.with_suffix(".log")
        assert self.start(place, "-o", str(log)) == 0
        entries = read_log(log, place)
        first = next(at for at, entry in enumerate(entries) if entry.call == "mkdir" and TOKEN.search(entry.line))
        last = max(at for at, entry in enumerate(entries) if TOKEN.search(entry.line))
        points, seen = [], {(entry.call, entry.number) for entry in entries[:first]}
        for entry in entries[first : last + 1]:
            if (entry.call, entry.number) not in seen:
                points.append(Point(entry.call, entry.number, "", entry.names))
            seen.add((entry.call, entry.number))
        return points


def ask(server: subprocess.Popen[str], request: dict[str, object]) -> int:
    """Let a server run the program, and return its exit code."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


@pytest.mark.parametrize(
    "options",
    [pytest.param([], marks=pytest.mark.full), ["--store-every", "20ba", "--like-input"]],
    ids=["weights", "moments and whole checkpoints"],
)
def test_a_kill_at_each_call_is_as_if_it_had_not_been(bench: Bench, tmp_path: Path, options: list[str], full: bool):
    """What is published is the old output or the new one, whole; watched once more, all bits are the same.

    Also between the rename of what is kept and that of the averages; of weights alone, and in the form of the input.
    """
    watch = Watch(bench, tmp_path, options)
    points = files_only(watch.record(watch.place(tmp_path / "record")))
    points = points if full else one_of_each_kind(points)
    assert len({point.call for point in points if point.call.startswith("rename")}) >= 1
    published = set()

    def check(number: int, point: Point) -> None:
        place = watch.place(tmp_path / f"{number:04}")
        traced = [f"--trace={point.call}", f"--inject={point.call}:signal=KILL:when={point.number}"]
        code = watch.start(place, "-o", str(place.with_suffix(".log")), *traced)
        assert code == -signal.SIGKILL, "not reached"
        INJECTED["KILL at a call of watch"] += 1
        out, kept = watch.state(place)
        assert out in (watch.old[0], watch.new[0])
        assert verified(place / "out", may_name_classes=True) == []
        published.add((out == watch.new[0], "30ba/watch.json" in (kept or {})))
        assert watch.start(place) == 0
        assert watch.state(place) == watch.new
        assert sorted(path.name for path in place.iterdir()) == ["out", "out.watch", "run"]
        assert not [path for path in (place / "out.watch").iterdir() if path.name.startswith(".")]
        shutil.rmtree(place)

    each(points, check)
    # Nothing done yet; what is kept alone; both.
    assert published == {(False, False), (False, True), (True, True)}
