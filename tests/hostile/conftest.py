"""The harness: a case is a hostile checkpoint in a run with two good ones; each is averaged and inspected under limits.

The program runs in a process of its own, with two gigabytes of address space and ten seconds of the processor. Code in
a file would create the canary. Whatever happens, the inputs stay as they were; where the case is an error, it is one
clear line that names the file, and nothing is written.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pytest

SECONDS = 10
PEAK_BYTES = 1 << 30
Build = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Case:
    """A hostile checkpoint, and what becomes of it.

    `build(path, canary)` makes it at `path`, the newest of its run; code in it would create `canary`. The error has
    `code` (0: the average is that of a good checkpoint in its place), names `file` (under the run) and, if there is
    one, `tensor`; `says` is in it. `passed`: the search of a folder passes it over with a warning, if it may be
    half-written or with --skip-damaged, and it is an error where it is named. `inspects`: the code of `inspect`, where
    that reads too little to see what is wrong. A case of more than the usual `seconds` is not inspected, which would
    take as long. `full`: only `make test-full` runs it.
    """

    build: Build
    says: str = ""
    tensor: str | None = None
    file: str | None = None
    code: int = 3
    inspects: int | None = None
    passed: bool = False
    seconds: int = SECONDS
    peak: int = PEAK_BYTES
    label: str = ""
    arguments: tuple[str, ...] = ()
    full: bool = False

    @property
    def name(self) -> str:
        """How the case is called: as its builder, or as it says."""
        return self.label or self.build.__name__


class Made(Protocol):
    """A folder to be written."""

    def write(self, path: Path) -> None:
        """Write the files."""


M = TypeVar("M", bound=Made)


@dataclass(frozen=True)
class FolderCases(Generic[M]):
    """Makes cases of folders that are changed before they are written; `file` is what an error names."""

    new: Callable[[], M]
    file: str

    def folder(self, label: str, change: Callable[[M], object], says: str = "", tensor: str | None = None,
               **more: Any) -> Case:  # fmt: skip
        """Return a case of a folder that was changed before it was written."""

        def write(path: Path, _canary: Path) -> None:
            made = self.new()
            change(made)
            made.write(path)

        return Case(write, says, tensor, label=label, **{"file": self.file, **more})

    def planted(self, label: str, change: Callable[[M, bytes], object], value: Callable[[Path], bytes]) -> Case:
        """Return a case of a value where nobody looks: the average is as without it.

        The same machine reads it as in every other file of torch's, where `make test` plants all of them.
        """

        def write(path: Path, canary: Path) -> None:
            made = self.new()
            change(made, value(canary))
            made.write(path)

        return Case(write, code=0, label=label, full=True)


@dataclass(frozen=True)
class Ended:
    """How a run of the program ended."""

    code: int
    peak: int
    out: bytes
    err: bytes

    def lines(self, kind: str) -> list[str]:
        """Return the lines on stderr that begin with `kind`."""
        return [line for line in self.err.decode().split("\n") if line.startswith(kind)]


class Server:
    """Runs the program, one request at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "400"}
        self.good: dict[tuple[str, ...], bytes] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], folder: Path, log: Path, seconds: int = SECONDS) -> Ended:
        """Run the program in `folder`."""
        assert self.process.stdin
        assert self.process.stdout
        request = {"arguments": arguments, "folder": str(folder), "log": str(log), "seconds": seconds}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Ended(out=Path(f"{log}.out").read_bytes(), err=Path(f"{log}.err").read_bytes(), **answer)

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The one server."""
    started = Server()
    yield started
    started.close()


def snapshot(folder: Path) -> dict[str, Any]:
    """Return what is in a folder: kind, size and time of change of each entry, and the bytes of files not too large."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        small = path.is_file() and not path.is_symlink() and status.st_size < 1 << 20
        content = path.read_bytes() if small else None
        found[str(path)] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, content)
    return found


@dataclass(frozen=True)
class Kind:
    """One reader's checkpoints: how the run's are called, and how a good one of `step` is written."""

    name: str
    good: Callable[[Path, int], object]
    arguments: tuple[str, ...] = ("--half-life", "1ba")


class Harness:
    """Checks cases of one test."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.canary = folder / "canary"
        self.logs = folder / "logs"
        self.logs.mkdir()

    def run_of(self, kind: Kind, build: Build, place: str) -> Path:
        """Return a folder with a run of two good checkpoints, and as the third what `build` makes."""
        work = self.folder / place
        (work / "run").mkdir(parents=True)
        for step in (1, 2):
            kind.good(work / "run" / kind.name.format(step), step)
        build(work / "run" / kind.name.format(3), self.canary)
        return work

    def check(self, kind: Kind, case: Case) -> None:
        """Average and inspect, and check all that a hostile checkpoint must not bring about."""
        work = self.run_of(kind, case.build, "hostile")
        path = f"run/{kind.name.format(3)}"
        file = case.file if case.file is None or case.file.startswith("run") else f"{path}/{case.file}"
        before = snapshot(work)
        law = [*kind.arguments, *case.arguments]
        output = ["-o", "out.safetensors"]
        named = [f"run/{kind.name.format(2)}", path] if case.passed else ["run"]
        if case.passed:
            ended = self.go(case, ["average", "run", *law, "--dry-run"], work)
            if ended.code:  # its name is one of the run's, and nothing says that it is still being written
                self.check_error(case, ended, file or path, 3)
                assert "--skip-damaged" in ended.lines("hint: ")[0], ended
                ended = self.go(case, ["average", "run", *law, "--dry-run", "--skip-damaged"], work)
            assert ended.code == 0, ended
            # What says that it is our own output is passed over without a word.
            assert case.code == 4 or any(path.removeprefix("run/") in line for line in ended.lines("warning: ")), ended
        ended = self.go(case, ["average", *named, *law, *output], work)
        self.check_error(case, ended, file or path, case.code)
        if case.code == 0:
            assert (work / "out.safetensors").read_bytes() == self.good_output(kind, case, law)
            for written in work.glob("out.safetensors*"):
                written.unlink()
        if case.seconds <= SECONDS:
            ended = self.go(case, ["inspect", path, *case.arguments], work)
            self.check_error(case, ended, file or path, case.code if case.inspects is None else case.inspects)
        assert snapshot(work) == before

    def good_output(self, kind: Kind, case: Case, law: list[str]) -> bytes:
        """Return the average where a good checkpoint stands in place of the hostile one."""
        key = (kind.good.__module__, kind.name, *law)
        if key not in self.server.good:
            work = self.run_of(kind, lambda place, _: kind.good(place, 3), "good")
            assert self.go(case, ["average", "run", *law, "-o", "out.safetensors"], work).code == 0
            self.server.good[key] = (work / "out.safetensors").read_bytes()
        return self.server.good[key]

    def go(self, case: Case, arguments: list[str], work: Path) -> Ended:
        """Run the program, and check what must hold however it ends."""
        ended = self.server.run(arguments, work, self.logs / "log", case.seconds)
        assert not self.canary.exists(), "code from the file ran"
        assert b"Traceback" not in ended.err, ended
        assert ended.code in (0, 3, 4), ended
        assert ended.peak < case.peak, f"{ended.peak >> 20} MiB"
        for text in (ended.out.decode(), ended.err.decode()):
            assert all(ch == "\n" or ch.isprintable() for ch in text), ended
        assert all(
            line.startswith(("error: ", "hint:  ", "warning: ", "note: ")) or not line for line in self.told(ended)
        ), ended
        assert len(ended.err) < 4096, len(ended.err)
        return ended

    @staticmethod
    def told(ended: Ended) -> list[str]:
        """Return the lines on stderr, without the lines that sum up an average."""
        lines = ended.err.decode().split("\n")
        return [line for line in lines if not re.match(r"\d+ (checkpoints?|tensors?) |It would take ", line)]

    @staticmethod
    def check_error(case: Case, ended: Ended, file: str, code: int, says: str | None = None) -> None:
        """Check that there is one error where there should be, which names the file and the tensor."""
        assert ended.code == code, ended
        errors = ended.lines("error: ")
        assert len(errors) == (1 if code else 0), ended
        if code:
            assert file.removeprefix("run/") in errors[0], ended
            assert (case.says if says is None else says) in errors[0] + "".join(ended.lines("hint: ")), ended
            assert case.tensor is None or f"'{case.tensor}'" in errors[0], ended
            assert ended.out == b"", ended


@pytest.fixture
def harness(server: Server, tmp_path: Path) -> Harness:
    """A harness in a folder of its own."""
    return Harness(server, tmp_path)


PARAMETERS: list[Case] = []  # all cases of all modules that were imported


def in_turn(*places: Iterable[Case]) -> list[Case]:
    """Return cases of the same things planted at several places: for `make test`, each thing at one place.

    The first thing at the first place, the second at the second, and so on, round and round: each place has some of
    all. The others are for `make test-full`.
    """
    return [
        replace(case, full=at % len(places) != number)
        for number, cases in enumerate(places)
        for at, case in enumerate(cases)
    ]


def parameters(cases: list[Case]) -> list[Any]:
    """Return the cases as parameters of a test; those for `make test-full` are marked."""
    PARAMETERS.extend(cases)
    found = []
    for case in cases:
        marks = [pytest.mark.slow, *[pytest.mark.full] * case.full]
        found.append(pytest.param(case, id=case.name, marks=marks))
    return found
