"""Ray: its tasks as an executor. Ray has none of its own, but futures that are those of the standard library."""

from __future__ import annotations

import io
import logging
import socket
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

from ema_cli.engines.engine import Engine, EngineError, Loss, plain_loss
from ema_cli.errors import UsageError

_CONNECT_SECONDS = 10
_P = ParamSpec("_P")
_T = TypeVar("_T")


@contextmanager
def ray_cluster(name: str, address: str) -> Iterator[Engine]:
    """Yield the workers of a Ray cluster that runs: at an address, or the one to which this machine belongs (`auto`).

    Raises:
        UsageError: where Ray is not installed.
        EngineError: where no cluster answers.
    """
    install = "pip install 'ema-cli[ray]'"
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"needs the package ray: {error}", option="on", hint=install) from error
    if address.startswith("ray://") and find_spec("grpc") is None:
        raise UsageError("needs Ray's client, which the package ray alone has not", option="on", hint=install)
    if address == "auto":
        _check_answers(name)
    try:
        with warnings.catch_warnings(action="ignore"):  # they say what the error says
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"no cluster answers: {str(error).splitlines()[0]}", subject=name, hint="start one: ray start --head"
        ) from error

    def loss(error: BaseException) -> Loss | None:
        # An error of the task itself comes as a result; so this is Ray's own: of a worker, or of a machine.
        return Loss() if isinstance(error, ray.exceptions.RayError) else plain_loss(error)

    def check() -> None:
        if not ray.is_initialized():
            raise EngineError("the cluster went away", subject=name, hint="start it anew, and this command again")

    try:
        with redirect_stdout(io.StringIO()):  # on which Ray says that a worker died
            yield Engine(name, RayTasks(ray), 1, loss, check)
    finally:
        ray.shutdown()


def _check_answers(name: str) -> None:
    """Check that something is at the address where Ray will look: it waits for minutes for a cluster that is gone.

    Raises:
        EngineError: where nothing is.
    """
    try:
        services = import_module("ray._private.services")
        found = str(services.canonicalize_bootstrap_address("auto"))
    except Exception:  # noqa: BLE001 - another version of Ray, or no address: Ray itself says what it finds
        return
    host, _, port = found.rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"no cluster answers at {found}, which RAY_ADDRESS or Ray's own file names: {error}",
            subject=name,
            hint="start one: ray start --head",
        ) from error


class RayTasks(Executor):
    """Tasks of Ray, one processor each. Ray itself tries none again."""

    def __init__(self, ray: Any) -> None:
        self._remote = ray.remote(_guarded).options(max_retries=0, num_cpus=1)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have a worker call a function."""
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()
        self._remote.remote(fn, args, kwargs).future().add_done_callback(lambda inner: _pass_on(inner, future))
        return future


def _guarded(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[bool, Any]:
    """Return whether a call went well, and its result or its error: Ray would wrap errors into its own."""
    try:
        return True, function(*arguments, **keywords)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who asks
        return False, error


def _pass_on(inner: Future[tuple[bool, Any]], outer: Future[Any]) -> None:
    error = inner.exception()
    if error is not None:
        outer.set_exception(error)
        return
    succeeded, result = inner.result()
    if succeeded:
        outer.set_result(result)
    else:
        outer.set_exception(result)
