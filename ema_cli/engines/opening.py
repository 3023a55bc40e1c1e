"""What `--on` names: an engine that runs somewhere, or one of this machine. Its library is loaded only here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module

from ema_cli.engines.engine import OF_WHO_ASKS, Engine
from ema_cli.errors import UsageError
from ema_cli.system.processors import default_threads
from ema_cli.text import lazy_pattern

KINDS = "dask://HOST:8786, dask:local=4, ray://HOST:10001, ray:auto, mpi, processes=4"
_NUMBERED = lazy_pattern(r"(dask:local|processes)=([0-9]{1,4})")


def open_engine(name: str) -> AbstractContextManager[Engine]:
    """Return what opens the engine that a user names.

    Raises:
        UsageError: for any other name; when it is entered, where its library is not installed.
        EngineError: when it is entered, where it does not answer.
    """
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None and int(numbered[2]):
        if numbered[1] == "processes":
            return _processes(name, int(numbered[2]))
        from ema_cli.engines.dask_cluster import local_dask

        return local_dask(name, int(numbered[2]))
    if name.startswith(("dask://", "dask+tls://")) and len(name) > len("dask://"):
        from ema_cli.engines.dask_cluster import dask_cluster

        scheme, _, place = name.partition("://")
        return dask_cluster(name, f"{'tls' if scheme.endswith('tls') else 'tcp'}://{place}")
    if name == "ray:auto" or (name.startswith("ray://") and len(name) > len("ray://")):
        from ema_cli.engines.ray_cluster import ray_cluster

        return ray_cluster(name, name.removeprefix("ray:") if name == "ray:auto" else name)
    if name == "mpi":
        from ema_cli.engines.mpi_ranks import mpi_ranks

        return mpi_ranks()
    raise UsageError(f"'{name}' is no engine", option="on", hint=f"one of {KINDS}")


def only_works(name: str | None) -> bool:
    """Return True, at the end of all work, in a process that was started to do tasks for another one: a rank of MPI's.

    Raises:
        UsageError: where what that needs is not there.
    """
    if name != "mpi":
        return False
    from ema_cli.engines.mpi_ranks import join_ranks

    return join_ranks()


@contextmanager
def _processes(name: str, number: int) -> Iterator[Engine]:
    from ema_cli.engines.process_pool import Processes, process_loss

    pool = Processes(number)
    stop = partial(pool.shutdown, cancel_futures=True)
    import_module(OF_WHO_ASKS)
    try:
        yield Engine(name, pool, max(1, default_threads() // number), process_loss, is_here=True, stop=stop)
    finally:
        stop()
