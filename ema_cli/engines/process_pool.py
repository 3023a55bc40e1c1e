"""Processes of this machine that do tasks. One that is lost is replaced, and takes with it its own task alone.

`ProcessPoolExecutor` of the standard library breaks as a whole, and does not say which task was to blame.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from ema_cli.dataclass import dataclass
from ema_cli.engines.engine import OF_TASKS, Loss, plain_loss
from ema_cli.system.processors import default_threads

_P = ParamSpec("_P")
_T = TypeVar("_T")
_PATIENCE_SECONDS = 2.0  # for a process that is to end


class ProcessLost(BrokenExecutor):
    """A process that ended in the middle of a task; `worker` is its name, for people."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker


def process_loss(error: BaseException) -> Loss | None:
    """Return which process was lost."""
    return Loss(error.worker) if isinstance(error, ProcessLost) else plain_loss(error)


@dataclass(frozen=True, slots=True)
class _Call:
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Processes(Executor):
    """So many processes, which are started, and load what tasks need, while the one who asks still prepares these.

    Those beyond the processors of this machine are started when there is something for them to do.
    """

    def __init__(self, number: int) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        early = default_threads()
        self._threads = [
            threading.Thread(target=self._serve, args=(n < early,), name=f"process {n}", daemon=True)
            for n in range(number)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have a process call a function; what it takes and returns must be picklable."""
        if self._ended.is_set():
            raise RuntimeError("the processes were ended")
        future: Future[_T] = Future()
        self._calls.put(_Call(future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; those at work are killed if calls are cancelled."""
        if cancel_futures:
            self._ended.set()
            with suppress(queue.Empty):
                while True:
                    call = self._calls.get_nowait()
                    if call is not None:
                        call.future.cancel()
        for _ in self._threads:
            self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self, early: bool) -> None:
        """Give calls to one process after another, as long as there are any; perhaps the first is started early."""
        process: _Process | None = None
        with suppress(OSError):  # tried again for the first call, of which it is the error then
            process = _Process() if early else None
        while (call := self._calls.get()) is not None:
            if not call.future.set_running_or_notify_cancel():
                continue
            try:
                process = process or _Process()
                succeeded, result = process.call(call, self._ended)
            except (EOFError, OSError):
                name = "that could not be started" if process is None else process.end()
                process = None
                call.future.set_exception(ProcessLost(name))
                continue
            if succeeded:
                call.future.set_result(result)
            else:
                call.future.set_exception(result)
        if process is not None:
            process.close()


class _Process:
    """One process, and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, call: _Call, ended: threading.Event) -> tuple[bool, Any]:
        """Return whether the call went well, and its result or its error.

        Raises:
            EOFError: where the process ended, or all are to end.
        """
        self._pipe.send((call.function, call.arguments, call.keywords))
        while not self._pipe.poll(0.2):
            if ended.is_set():
                raise EOFError
        answer: tuple[bool, Any] = self._pipe.recv()
        return answer

    def close(self) -> None:
        """End the process, which waits for the next call."""
        self._pipe.close()
        self._process.join(_PATIENCE_SECONDS)
        self._process.kill()
        self._process.join()

    def end(self) -> str:
        """End the process, whatever it does, and return its name, with how it ended."""
        self._process.join(timeout=0.2)
        was_gone = self._process.exitcode is not None
        self._process.terminate()  # so that it removes what it has in the making
        self._process.join(_PATIENCE_SECONDS)
        self._process.kill()
        self._process.join()
        self._pipe.close()
        code = self._process.exitcode or 0
        how = f", ended by signal {-code}" if code < 0 else f", ended with code {code}"
        return f"process {self._process.pid}{how if was_gone else ''}"


def _work(pipe: Connection) -> None:
    """Call what comes through the pipe, until nobody is at its other end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it goes to all: the one who asks ends this process
    import_module(OF_TASKS)
    with suppress(EOFError, OSError):
        while True:
            function, arguments, keywords = pipe.recv()
            try:
                answer = True, function(*arguments, **keywords)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who asks
                answer = False, error
            pipe.send(answer)
