"""What an engine is to us: an executor, and how it says that a worker was lost. All else is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor

from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError

OF_TASKS = "ema_cli.engines.worker"
"""The module that does tasks: workers that we start load it at once, and not with their first task."""

OF_WHO_ASKS = "ema_cli.engines.spread"
"""The module that hands out tasks: it is loaded while workers start that we start."""


class EngineError(OutputError):
    """Workers, or the engine itself, that were lost. What is finished is kept: the same command goes on with it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that was lost with a task.

    Attributes:
        worker: its name, for people; empty where the engine does not say.
        tries: how often the engine itself gave the task to a worker.
    """

    worker: str = ""
    tries: int = 1


def plain_loss(error: BaseException) -> Loss | None:
    """Return what any executor says by its error: that a worker was lost, or None for any other error."""
    return Loss() if isinstance(error, BrokenExecutor | CancelledError) else None


@dataclass(frozen=True, slots=True)
class Engine:
    """Those who do tasks.

    Attributes:
        name: as the user named it.
        executor: takes tasks.
        threads: of one task, where the user does not say.
        loss: what an error of a task says of a lost worker; None where it is an error of the task itself.
        check: raises an EngineError if the engine went away.
        is_here: whether its workers are processes of this machine.
        stop: ends its workers at once, where they are ours alone; None where they are not.
    """

    name: str
    executor: Executor
    threads: int = 1
    loss: Callable[[BaseException], Loss | None] = plain_loss
    check: Callable[[], None] = lambda: None
    is_here: bool = False
    stop: Callable[[], object] | None = None
