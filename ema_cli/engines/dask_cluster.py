"""Dask: workers of a cluster that runs, or of one of this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from ema_cli.engines.engine import OF_TASKS, OF_WHO_ASKS, Engine, EngineError, Loss, plain_loss
from ema_cli.errors import UsageError
from ema_cli.system.processors import default_threads

_CONNECT_SECONDS = 30
_LOCAL = {
    # We send what was lost again ourselves, and count how often.
    "distributed.scheduler.allowed-failures": 0,
    # Nobody looks at what these measure.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise UsageError(
            f"needs the package distributed: {error}", option="on", hint="pip install 'ema-cli[dask]'"
        ) from error
    return distributed


@contextmanager
def dask_cluster(name: str, address: str) -> Iterator[Engine]:
    """Yield the workers of the scheduler at an address, as tcp://host:8786.

    Raises:
        UsageError: where Dask is not installed, or the address is none for it.
        EngineError: where the scheduler does not answer.
    """
    distributed = _distributed()
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        try:
            # Before there is a client: one that was given up may be collected while the next starts, and hang it.
            distributed.comm.addressing.parse_host_port(address.partition("://")[2])
            client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (ValueError, TypeError) as error:  # no address, or TLS without what Dask is told of it
            hint = "as dask://HOST:8786; certificates for dask+tls:// come from Dask's setting distributed.comm.tls"
            raise UsageError(f"'{name}': {error}", option="on", hint=hint) from error
        except (OSError, TimeoutError) as error:
            raise EngineError(
                f"the scheduler does not answer: {error}", subject=name, hint="start it: dask scheduler"
            ) from error
        stack.callback(client.close)
        yield _engine(name, client)


@contextmanager
def local_dask(name: str, number: int) -> Iterator[Engine]:
    """Yield so many workers of Dask on this machine.

    Raises:
        UsageError: where Dask is not installed.
    """
    distributed = _distributed()
    import dask

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(dask.config.set(_LOCAL))
        cluster = stack.enter_context(
            distributed.LocalCluster(
                n_workers=number,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # of what it serves besides: any free port
                preload=[OF_TASKS],
                memory_limit=None,  # a fold takes what `--max-memory` says
                silence_logs=logging.CRITICAL,
            )
        )
        client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
        import_module(OF_WHO_ASKS)
        engine = _engine(name, client, max(1, default_threads() // number))
        yield replace(engine, is_here=True, stop=stack.close)


def _engine(name: str, client: Any, threads: int = 1) -> Engine:
    def check() -> None:
        if client.status != "running":
            raise EngineError(
                "the scheduler went away",
                subject=name,
                hint="start it anew; the same command goes on with what is finished",
            )

    executor = client.get_executor(pure=False, retries=0)
    return Engine(name, executor, threads, _loss, check)


def _loss(error: BaseException) -> Loss | None:
    if type(error).__name__ == "KilledWorker":
        # The scheduler gave it to so many workers, one after another, as its own setting says.
        worker, failures = getattr(error, "last_worker", None), getattr(error, "allowed_failures", 0)
        return Loss(str(getattr(worker, "address", "")), failures + 1)
    return Loss() if isinstance(error, CancelledError) else plain_loss(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own words about lost workers off the terminal: what matters of them is said by us."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
