"""Workers that are lost in the middle, and what is done to them: functions that processes can import."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ema_cli.engines.tasks import Task
from ema_cli.engines.work import pack, unpack

PATIENCE_SECONDS = 60


def wait_for(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds, and return what it gives."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)
    return value


def workers_that_did_something(folder: Path) -> list[int]:
    """Return the processes that have done a task of an average that is made in `folder`, by what they told."""
    import json

    told = []
    for path in folder.glob(".ema-cli-parts-*/.tasks/*/*.json"):
        try:
            told.append(int(json.loads(path.read_text().splitlines()[1])["worker"].rpartition(":")[2]))
        except (OSError, ValueError):
            continue  # it is just being put there
    return told


@contextmanager
def first_worker_killed(folder: Path) -> Iterator[list[int]]:
    """Kill the process that is the first to have done a task, as soon as it has; yield a list that then holds it."""
    killed: list[int] = []

    def kill() -> None:
        process = wait_for(lambda: workers_that_did_something(folder))[0]
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        thread.join()


def die(*_: object) -> None:
    """End this process as a lack of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)


_tasks_done = 0  # by this process


def die_once_with_the_second_task(killed: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in this process; the first process that is to do so for the second time ends, and says so."""
    global _tasks_done
    if _tasks_done:
        with suppress(FileExistsError), killed.open("x"):
            die()
    _tasks_done += 1
    return function(*arguments)


def with_full_disk(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in this process, in which no file may grow any more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        return function(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def with_other_version(function: Callable[..., Any], versions: dict[str, str], *arguments: Any) -> Any:
    """Call a function in this process as if the one who asks had another numpy."""
    return function({**versions, "numpy": "1.0.0"}, *arguments)


def with_another_disk(function: Callable[..., Any], wanted: dict[str, str], packed: bytes, task: Task) -> Any:
    """Call a function in this process as if the output lay on the disk of another machine."""
    (work,) = unpack(packed)
    return function(wanted, pack(replace(work, tasks=Path("/nowhere") / work.tasks.name)), task)


class Wrapped(Executor):
    """An executor that calls another function for some tasks."""

    def __init__(
        self, executor: Executor, wrapper: Callable[..., Any], chosen: Callable[[Task], bool] = lambda task: True
    ) -> None:
        self._executor = executor
        self._wrapper = wrapper
        self._chosen = chosen

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._chosen(args[-1]):
            return self._executor.submit(self._wrapper, fn, *args)
        return self._executor.submit(fn, *args)
