"""MPI: rank 0 asks, all others do tasks. Every rank runs the same command line, under mpiexec or srun."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ema_cli.engines.engine import Engine
from ema_cli.errors import UsageError

NAME = "mpi"
_joined: list[Any] = []  # the executor of rank 0


def join_ranks() -> bool:
    """Join the other ranks; return True, at the end of all work, in a rank that did tasks for rank 0.

    It comes before all else, so that rank 0 lets the others go whatever becomes of it.

    Raises:
        UsageError: where mpi4py is not installed, or there is one rank only.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except ImportError as error:
        raise UsageError(f"needs mpi4py: {error}", option="on", hint="pip install 'ema-cli[mpi]'") from error
    if MPI.COMM_WORLD.Get_size() < 2:
        raise UsageError(
            "has one rank, which only asks",
            option="on",
            hint="mpiexec -n 9 ema-cli average ... --on mpi, for 8 workers",
        )
    with ExitStack() as stack:
        executor = stack.enter_context(MPICommExecutor(MPI.COMM_WORLD, root=0))
        if executor is None:
            return True
        _joined.append(executor)
        atexit.register(stack.pop_all().close)
    return False


@contextmanager
def mpi_ranks() -> Iterator[Engine]:
    """Yield the other ranks, which were joined. A rank that dies ends the whole job: so MPI has it."""
    yield Engine(NAME, _joined[-1])
