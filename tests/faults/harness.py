"""The program under strace: what it calls while its staging folder is there, and what becomes of a fault there.

strace counts calls per thread, so that the n-th call of one thread can hide the n-th of another; those hidden are
left out. What was hit is read from strace's log and compared with what was meant.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import pytest

from ema_cli import Recipe, Time, average, make_plan, open_run, parse_target
from ema_cli.manifest.sums import sidecars
from ema_cli.release.published import find_averages
from ema_cli.release.verify import verify
from tests.conftest import write_hf_run

INJECTED: Counter[str] = Counter()  # told at the end of the tests
PROCESSORS = len(os.sched_getaffinity(0))
TOKEN = re.compile(r"\.ema-cli-[0-9a-f]{16}")
# What has to do with memory, threads and signals, not with files.
PROCESS_CALLS = re.compile(
    "brk|clock_gettime|clock_nanosleep|clone3?|exit|exit_group|futex|getcwd|getpid|getrandom|gettid|ioctl|madvise|mprotect|mremap|"
    "munmap|prlimit64|rseq|rt_sig.*|sched_.*|set_robust_list|sysinfo|restart_syscall"
)

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

State = Mapping[str, bytes] | None  # the files of a folder by name; those of a single file by what ends their names
Fault = TypeVar("Fault")


@dataclass(frozen=True)
class Scenario:
    """One file, a folder, a folder of several files, or one like the input, new or over an older output of ours.

    With manifest and sums, or without, so that older ones are to go.
    """

    output: str
    force: bool
    manifest: bool = True

    def __str__(self) -> str:
        kinds = {"out.safetensors": "file", "out.pt": "torch", "out": "folder", "sweep": "sweep", "like": "like"}
        return kinds[self.output] + "-force" * self.force + "-bare" * (not self.manifest)

    @property
    def is_folder(self) -> bool:
        """Return whether what is published is a folder."""
        return "." not in self.output

    @property
    def asked(self) -> str:
        """Return what is said to `-o`."""
        return "sweep/ema-{half_life}.safetensors" if self.output == "sweep" else self.output

    @property
    def like_input(self) -> bool:
        """Return whether the output is the newest checkpoint over again."""
        return self.output == "like"

    def half_lives(self, first: str) -> list[str]:
        """Return the half-lives that are asked for."""
        return [first, "20ba"] if self.output == "sweep" else [first]


FILE, FILE_FORCE = Scenario("out.safetensors", False), Scenario("out.safetensors", True)
FOLDER, FOLDER_FORCE = Scenario("out", False), Scenario("out", True)
FILE_BARE, TORCH_FORCE = Scenario("out.safetensors", True, manifest=False), Scenario("out.pt", True)
SWEEP, SWEEP_FORCE = Scenario("sweep", False), Scenario("sweep", True)
LIKE_FORCE = Scenario("like", True)
SCENARIOS = (FILE, FILE_FORCE, FOLDER, FOLDER_FORCE, SWEEP_FORCE, FILE_BARE, TORCH_FORCE, SWEEP)
WHOLE = SCENARIOS[:5]  # of which each call is of interest; of the others those of the publishing
each_scenario = pytest.mark.parametrize(
    "scenario", [*SCENARIOS, pytest.param(LIKE_FORCE, marks=pytest.mark.full)], ids=str
)
# Where the disk itself refuses, one of each form that is written, over an older output and without one.
each_form = pytest.mark.parametrize(
    "scenario",
    [
        each if each in (FILE_FORCE, FOLDER, SWEEP_FORCE, TORCH_FORCE) else pytest.param(each, marks=pytest.mark.full)
        for each in (*SCENARIOS, LIKE_FORCE)
    ],
    ids=str,
)


@dataclass(frozen=True)
class Point:
    """The `number`-th `call` of a thread, and whether it comes before, at or after the commit, or in the clean-up."""

    call: str
    number: int
    phase: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.call} {self.number} ({self.phase}: {' '.join(self.names)})"


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    code: int
    err: str
    state: State
    litter: list[str]


class Bench:
    """A run to average, what comes of it, and processes that do it."""

    def __init__(self, folder: Path, cleanup: ExitStack) -> None:
        self.run = folder / "run"
        write_hf_run(self.run, [10, 20, 30])
        for name in ("generation_config", "special_tokens_map", "tokenizer_config"):
            # Enough of them that the main thread's writes outnumber the worker's.
            (self.run / "checkpoint-30" / f"{name}.json").write_text("{}")
        self._servers: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        for _ in range(PROCESSORS):
            command = [sys.executable, str(Path(__file__).with_name("server.py")), *self.arguments(FILE)]
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            server = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            cleanup.enter_context(server)
            self._servers.put(server)
        self._states: dict[tuple[str, str], State] = {}
        for output in ("out", "out.safetensors", "out.pt", "sweep", "like"):
            for half_life in ("1000ba", "10ba"):
                left = self.start(folder, Scenario(output, True), half_life=half_life)
                assert left.code == 0, left.err
                self._states[output, half_life] = left.state
        assert len({str(state) for state in self._states.values()}) == 10

    def take_server(self) -> subprocess.Popen[str]:
        """Return a process that runs the program, for as long as nobody else has it."""
        return self._servers.get()

    def give_server(self, server: subprocess.Popen[str]) -> None:
        """Give it back."""
        self._servers.put(server)

    def arguments(self, scenario: Scenario, half_life: str = "10ba") -> list[str]:
        """Return the arguments that write the scenario's output into the current folder."""
        half_lives = [word for each in scenario.half_lives(half_life) for word in ("--half-life", each)]
        law = [*half_lives, "--threads", "1", "--quiet"]
        options = [*["--force"] * scenario.force, *["--no-manifest"] * (not scenario.manifest)]
        options += ["--like-input"] * scenario.like_input
        return ["average", str(self.run), *law, "-o", scenario.asked, *options]

    def command(self, scenario: Scenario) -> list[str]:
        """Return the whole command line."""
        return [sys.executable, "-m", "ema_cli", *self.arguments(scenario)]

    def old(self, scenario: Scenario) -> State:
        """Return what is at the target before."""
        return self._states[scenario.output, "1000ba"] if scenario.force else None

    def new(self, scenario: Scenario) -> State:
        """Return what is at the target once all is done."""
        state = self._states[scenario.output, "10ba"]
        return state if scenario.manifest or state is None else {"": state[""]}

    def place(self, folder: Path, scenario: Scenario) -> Path:
        """Make a folder to write into, with the older output in it if there is one."""
        folder.mkdir()
        for name, content in (self.old(scenario) or {}).items():
            path = folder / scenario.output / name if scenario.is_folder else folder / f"{scenario.output}{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def start(
        self,
        place: Path,
        scenario: Scenario,
        *strace: str,
        half_life: str = "10ba",
        number: int = 0,
        delay: float = 0,
    ) -> Outcome:
        """Run to the end, under strace with these options, or with a signal after `delay` seconds."""
        told = place.with_suffix(".told")
        request = {
            "place": str(place),
            "told": str(told),
            "arguments": self.arguments(scenario, half_life),
            "strace": strace,
            "signal": number,
            "delay": delay,
        }
        server = self._servers.get()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        self._servers.put(server)
        err = told.read_text()
        assert "Traceback" not in err, err
        return Outcome(code, err, read_state(place / scenario.output), litter(place))

    def run_next(self, place: Path, scenario: Scenario) -> None:
        """Average once more, as the next run in that place would, and check that all is as it should be.

        Without force where there is none in the scenario, unless the output is there already.
        """
        run = open_run([self.run])
        plans = [make_plan(run, Recipe(half_life=Time.parse(each))) for each in scenario.half_lives("10ba")]
        force = scenario.force or (place / scenario.output).exists()
        target, like = parse_target(place / scenario.asked), scenario.like_input
        average(plans, target, force=force, manifest=scenario.manifest, like_input=like)
        assert read_state(place / scenario.output) == self.new(scenario)
        assert litter(place) == []
        if scenario.manifest:
            self.check_sums(place, scenario)

    def check_sums(self, place: Path, scenario: Scenario) -> None:
        """Check that what is there agrees: for sha256sum, and for ours."""
        target = place / scenario.output
        for sums in (*place.glob(f"{scenario.output}.sha256"), *target.glob("*.sha256"), *target.glob("SHA256SUMS")):
            command = ["sha256sum", "--check", "--strict", "--quiet", sums.name]
            done = subprocess.run(command, cwd=sums.parent, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        assert verified(target) == []

    def check_killed(self, place: Path, scenario: Scenario, state: State, *, committed: bool) -> None:
        """Check what a killed run left: the output old or new, whole; and whether it is told where that is a mix."""
        old, new = self.old(scenario) or {}, self.new(scenario) or {}
        found = state or {}
        if scenario.is_folder or committed:
            assert found == (new if committed else old)
        else:
            assert found.get("") == old.get("")
            for name in found.keys() | old.keys() | new.keys():
                assert found.get(name) in (old.get(name), new.get(name)), name
        whole = found in [each for each in (old, new) if len(each) > 1]
        assert (verified(place / scenario.output) == []) == (whole or not found)

    def record(self, place: Path, scenario: Scenario, *options: str) -> list[Point]:
        """Return the calls from the staging folder's making to its removal; `place` must be as for `inject`."""
        log = place.with_suffix(".log")
        left = self.start(place, scenario, "-o", str(log), *options)
        assert left.code == 0, left.err
        entries = read_log(log, place)
        first = next(at for at, entry in enumerate(entries) if entry.call == "mkdir" and TOKEN.search(entry.line))
        last = max(at for at, entry in enumerate(entries) if entry.call == "rmdir" and TOKEN.search(entry.line))
        last = next(at for at in range(last, len(entries)) if entries[at].call == "close")
        commit = max(at for at in range(first, last) if entries[at].call.startswith("rename"))
        cleanup = next(at for at in range(commit + 1, last) if TOKEN.search(entries[at].line))
        points, seen = [], {(entry.call, entry.number) for entry in entries[:first]}
        for at in range(first, last + 1):
            entry = entries[at]
            if (entry.call, entry.number) not in seen:
                phase = "before" if at < commit else "commit" if at == commit else "after"
                points.append(Point(entry.call, entry.number, phase if at < cleanup else "cleanup", entry.names))
            seen.add((entry.call, entry.number))
        assert {point.phase for point in points} == {"before", "commit", "after", "cleanup"}
        return points

    def inject(self, place: Path, scenario: Scenario, point: Point, fault: str, *options: str) -> Outcome:
        """Run with `fault` at `point`."""
        log = place.with_suffix(".log")
        traced = [f"--trace={point.call}", f"--inject={point.call}:{fault}:when={point.number}"]
        left = self.start(place, scenario, "-o", str(log), *traced, *options)
        entries = read_log(log, place)
        hit = next((entry for entry in entries if (entry.call, entry.number) == (point.call, point.number)), None)
        assert hit is not None, "not reached"
        # In which order a folder's files are removed depends on their names, which differ.
        removal = point.phase == "cleanup" and point.call.startswith("unlink")
        assert removal or hit.names == point.names, f"hit {hit.line} instead"
        kind = fault.partition("=")[0]
        assert kind == "signal" or "(INJECTED)" in log.read_text(), "nothing was injected"
        INJECTED["error at a call" if kind == "error" else f"{fault.partition('=')[2]} at a call"] += 1
        return left


@dataclass(frozen=True)
class Entry:
    """One line of strace's log: a call, and which of its thread it is."""

    call: str
    number: int
    line: str

    @property
    def names(self) -> tuple[str, ...]:
        """Return the last parts of the paths in it, without what differs between runs."""
        if "MAP_ANONYMOUS" in self.line:
            return ("memory",)
        if self.call.startswith(("pwrite", "write", "pread", "read")):
            return ()
        quoted = re.findall(r'"([^"]*)"', self.line)
        return tuple(TOKEN.sub(".ema-cli-*", path).rpartition("/")[2] for path in quoted)


def read_log(log: Path, place: Path) -> list[Entry]:
    """Return the calls in strace's log, in the order in which they began."""
    counts: Counter[tuple[str, str]] = Counter()
    entries = []
    for line in log.read_text(errors="replace").replace(str(place), "/place").splitlines():
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match:
            counts[match[1], match[2]] += 1
            entries.append(Entry(match[2], counts[match[1], match[2]], line))
    return entries


def files_only(points: Iterable[Point]) -> list[Point]:
    """Leave out the calls that have to do with memory, threads and signals.

    Memory is mapped more or less often, as threads run, so that the number of a library's mapping differs, too.
    """
    return [point for point in points if not (PROCESS_CALLS.fullmatch(point.call) or point.call == "mmap")]


NAMING = re.compile("(rename|mkdir|unlink|rmdir|link|symlink).*")  # calls that change what stands under a name


def one_of_each_kind(points: Iterable[Point]) -> list[Point]:
    """Return the first of each call in each phase; of calls that change names, the first for each name."""
    kinds: dict[tuple[object, ...], Point] = {}
    for point in points:
        kinds.setdefault((point.call, point.phase, point.names if NAMING.match(point.call) else ()), point)
    return list(kinds.values())


def each(faults: Sequence[Fault], check: Callable[[int, Fault], None]) -> None:
    """Check every fault, as many at a time as there are processors; tell all that fail."""
    assert faults, "nothing to inject"

    def attempt(numbered: tuple[int, Fault]) -> str:
        try:
            check(*numbered)
        except AssertionError as failure:
            fault = numbered[1]
            return f"{' '.join(map(str, fault)) if isinstance(fault, tuple) else fault}: {failure}"
        return ""

    with ThreadPoolExecutor(PROCESSORS) as pool:
        failures = [text for text in pool.map(attempt, enumerate(faults)) if text]
    assert not failures, f"{len(failures)} of {len(faults)}:\n" + "\n".join(failures)


def publishing(points: Sequence[Point]) -> list[Point]:
    """Leave out what comes before the publishing: that begins with the first rename."""
    first = next(at for at, point in enumerate(points) if point.call.startswith("rename"))
    return list(points[max(first - 5, 0) :])


def verified(target: Path, *, may_name_classes: bool = False) -> list[str]:
    """Return what does not hold of the averages that are there; of those in the form of their input classes may."""
    there = target.exists() or any(path.exists() for path in sidecars(target))
    averages = find_averages([target]) if there else ()
    return [problem for each in averages for problem in verify(each, may_name_classes=may_name_classes).problems]


def read_state(target: Path) -> State:
    """Return the files at the target, and beside a file, byte for byte; None where nothing is."""
    if target.is_dir():
        return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    paths = {path.name.removeprefix(target.name): path for path in (target, *sidecars(target))}
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()} or None


def litter(place: Path) -> list[str]:
    """Return the names of hidden folders of ours."""
    return sorted(path.name for path in place.iterdir() if path.name.startswith(".ema-cli-"))
