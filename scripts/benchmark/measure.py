"""Run a command as a whole process tree and measure it: time, CPU, reads, and what else the machine did meanwhile.

Memory is measured in runs of its own (see memory.py), because looking at it takes CPU from what is looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

TICK = os.sysconf("SC_CLK_TCK")
SECTOR = 512
PATIENCE = 1800  # seconds, after which a run is stopped: it hangs
_TAIL = 2000  # characters of what a failed process said


@dataclass(frozen=True)
class Run:
    """One run of one competitor."""

    wall: float  # seconds from the start of the first process to the end of the last
    cpu: float  # seconds, user and system, of the whole tree
    disk_read: int  # bytes that this tree fetched from the disk; 0 where all was in the page cache
    major_faults: int
    foreign_cpu: float  # seconds that other processes took meanwhile
    foreign_disk: int  # bytes that others read or wrote meanwhile, as far as can be told
    load: float  # the system's load average when it began
    cores: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


class RunError(Exception):
    """A competitor failed; the message has the end of what it said."""


@dataclass(frozen=True)
class Command:
    """What is run, and what is added to the environment. Paths in it are absolute: it runs wherever we are."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    output: Path  # what it writes, if it does
    log: Path  # takes stdout and stderr


class Tree:
    """A process and its descendants. `usage` and `code` are there when they have ended."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.code = 0
        self.usage: resource.struct_rusage | None = None

    def wait(self) -> None:
        """Wait until the first process has ended; its id stays taken until the tree is closed."""
        os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOWAIT)

    def ended(self) -> bool:
        """Return whether the first process has ended."""
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def kill(self) -> None:
        """Stop what is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)

    def close(self) -> None:
        """Stop what is left, and collect what all of it used."""
        self.kill()
        _, status, self.usage = os.wait4(self.process, 0)
        self.code = os.waitstatus_to_exitcode(status)


@contextlib.contextmanager
def started(command: Command) -> Iterator[Tree]:
    """Start a command in a process group of its own; in the end nothing of it runs any more."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    out, err = command.log.with_suffix(".out"), command.log.with_suffix(".err")
    tree = Tree(
        os.posix_spawnp(
            command.arguments[0],
            command.arguments,
            {**os.environ, **command.environment},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(out), flags, 0o644),
                (os.POSIX_SPAWN_OPEN, 2, str(err), flags, 0o644),
            ],
            setpgroup=0,
        )
    )
    alarm = threading.Timer(PATIENCE, tree.kill)
    alarm.daemon = True
    alarm.start()
    try:
        yield tree
    finally:
        alarm.cancel()
        tree.close()


def timed(command: Command) -> Run:
    """Run a command and return what it took.

    Raises:
        RunError: where it ends with another code than 0.
    """
    load = os.getloadavg()[0]
    before = _Machine.now(command.log)
    begun = time.perf_counter()
    with started(command) as tree:
        tree.wait()
        wall = time.perf_counter() - begun
    after = _Machine.now(command.log)
    check(command, tree.code)
    usage = tree.usage
    assert usage is not None
    cpu = usage.ru_utime + usage.ru_stime
    own = usage.ru_inblock * SECTOR, usage.ru_oublock * SECTOR
    foreign = [max(0, now - then - mine) for now, then, mine in zip(after.disk, before.disk, own, strict=True)]
    return Run(
        wall=wall,
        cpu=cpu,
        disk_read=own[0],
        major_faults=usage.ru_majflt,
        foreign_cpu=max(0.0, after.others_cpu - before.others_cpu - cpu),
        foreign_disk=sum(foreign),
        load=load,
        cores=len(os.sched_getaffinity(0)),
    )


def timed_inside(command: Command) -> Run:
    """Run a command that says itself what counts of its time, as on_engine.py does.

    Raises:
        RunError: where it ends with another code than 0.
    """
    whole = timed(command)
    said = json.loads(command.log.with_suffix(".out").read_text().splitlines()[-1])
    return replace(whole, wall=said["wall"], cpu=said["cpu"])


def check(command: Command, code: int) -> None:
    """Raise a RunError, with the end of what it said, for an exit code that is not 0."""
    if code:
        texts = [command.log.with_suffix(suffix).read_text(errors="replace").strip() for suffix in (".out", ".err")]
        said = "\n".join(filter(None, texts))[-_TAIL:]
        raise RunError(f"exit code {code}: {said or 'it said nothing'}")


def noise(run: Mapping[str, Any]) -> str | None:
    """Return why a run does not count, or nothing.

    Other processes may take a tenth of the machine, or what is within the precision of the kernel's ticks.
    """
    allowed = max(0.1 * run["wall"] * run["cores"], 0.05)
    if run["foreign_cpu"] > allowed:
        share = run["foreign_cpu"] / (run["wall"] * run["cores"])
        return f"other processes took {share:.0%} of the processors"
    # Journal and metadata are nobody's; more than this is somebody's.
    if run["foreign_disk"] > max(run["wall"] * 100e6, 64e6):
        return f"other processes read or wrote {run['foreign_disk'] / 1e6:.0f} MB"
    return None


@dataclass(frozen=True)
class _Machine:
    """Counters of the whole machine: CPU seconds of all but ourselves and the kernel's threads; the disk's bytes."""

    others_cpu: float
    disk: tuple[int, int]  # read, written

    @classmethod
    def now(cls, near: Path) -> _Machine:
        """Read the counters; those of the disk on which a path lies."""
        line = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _idle, _wait, _irq, _soft, steal = map(int, line[1:9])
        mine = os.times()
        # Kernel threads write back what the measured process wrote: that is no foreign load. Nor are interrupts.
        others = (user + nice + system + steal - _kernel_ticks()) / TICK - mine.user - mine.system
        return cls(others, _disk_bytes(near))


def _kernel_ticks() -> int:
    """Return the CPU ticks of all kernel threads."""
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if entry.name == "2" or fields[1] == "2":
                    total += int(fields[11]) + int(fields[12])
    return total


def _disk_bytes(near: Path) -> tuple[int, int]:
    device = near.parent.stat().st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if (int(fields[0]), int(fields[1])) == (os.major(device), os.minor(device)):
            return int(fields[5]) * SECTOR, int(fields[9]) * SECTOR
    return 0, 0  # a file system without a disk of its own


def evict(paths: Sequence[Path]) -> None:
    """Drop files from the page cache. The cache of a virtual machine's host is out of reach."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not yet written back cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(paths: Sequence[Path]) -> None:
    """Read files into the page cache."""
    block = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def cached_share(paths: Sequence[Path]) -> float:
    """Return which share of the files is in the page cache, in [0, 1]."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    present = pages = 0
    for path in paths:
        nbytes = path.stat().st_size
        if not nbytes:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            address = library.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        finally:
            os.close(descriptor)
        found = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
        library.mincore(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), found)
        library.munmap(ctypes.c_void_p(address), ctypes.c_size_t(nbytes))
        present += int((np.frombuffer(found, np.uint8) & 1).sum())
        pages += len(found)
    return present / pages if pages else 1.0
