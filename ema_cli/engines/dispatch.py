"""Give tasks to an engine, and give those again whose worker was lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from ema_cli.engines.engine import Engine, EngineError, Loss
from ema_cli.engines.tasks import Task
from ema_cli.engines.work import versions
from ema_cli.errors import EmaError, UsageError

T = TypeVar("T")
_MOST_TRIES = 4  # a task is sent, and three times again
_TICK_SECONDS = 0.2


def dispatch(
    engine: Engine,
    function: Callable[[Mapping[str, str], bytes, Task], T],
    packed: bytes,
    tasks: Sequence[Task],
    describe: Callable[[Task], str],
    tick: Callable[[Sequence[T]], None],
    sent: set[Future[T]],
) -> list[T]:
    """Have tasks done, in any order; return what became of them.

    Args:
        engine: does them.
        function: does one, given our versions, the work and the task: as `worker.run_task`.
        packed: the work.
        tasks: the tasks.
        describe: says what a task makes, for messages.
        tick: called now and then, with what is done.
        sent: takes what was sent, for those who wait for its end.

    Raises:
        EngineError: where workers are lost again and again with one task, or the engine is.
        EmaError: of a task.
    """
    wanted, tries, done = versions(), dict.fromkeys(tasks, 0), list[T]()

    def send(task: Task) -> Future[T]:
        try:
            future = engine.executor.submit(function, wanted, packed, task)
        except RuntimeError as error:  # a broken pool, or one that was shut down
            engine.check()
            raise EngineError(
                f"takes no more tasks: {error}", subject=engine.name, hint="start the workers anew, and this again"
            ) from error
        sent.add(future)
        return future

    running: dict[Future[T], Task] = {}
    try:
        for task in tasks:
            running[send(task)] = task
        while running:
            wait(running, _TICK_SECONDS, FIRST_COMPLETED)
            engine.check()
            # A pool that is shut down cancels what waits, of which `wait` tells nothing.
            for future in [each for each in running if each.done()]:
                task = running.pop(future)
                lost = _lost(engine, future)
                if lost is None:
                    done.append(_result(future, engine))
                    continue
                tries[task] += lost.tries
                if tries[task] >= _MOST_TRIES:
                    raise _error(engine, lost, tries[task], describe(task))
                running[send(task)] = task
            tick(done)
    except BaseException:
        for future in running:
            future.cancel()
        raise
    return done


def _lost(engine: Engine, future: Future[T]) -> Loss | None:
    if future.cancelled():
        return Loss()
    error = future.exception()
    return None if error is None else engine.loss(error)


def _result(future: Future[T], engine: Engine) -> T:
    """Return the result of a task.

    Raises:
        EmaError: of the task; in words, too, where the worker has no ema-cli, or another.
    """
    try:
        return future.result()
    except EmaError:
        raise
    except (ImportError, AttributeError) as error:  # what a worker says that cannot even find the function
        wanted = versions()
        raise UsageError(
            f"a worker cannot run ema-cli {wanted['ema-cli']}: {error}",
            subject=engine.name,
            hint=f"install the same on all: pip install ema-cli=={wanted['ema-cli']}",
        ) from error


def _error(engine: Engine, lost: Loss, tries: int, what: str) -> EngineError:
    worker = f"worker {lost.worker}" if lost.worker else "a worker"
    return EngineError(
        f"{worker} was lost with {what}, which was given to {tries} workers one after another",
        subject=engine.name,
        hint="look into the log of that worker; the same command goes on with what is finished",
    )
