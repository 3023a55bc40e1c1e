"""Threads: the failure to start one is an error with a hint, and one that reads is not waited for after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ema_cli.errors import EmaError, option

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


WAITS_FOR_STORE = "ask"
"""The name of a thread that has asked a store, and ends with the answer."""


@contextmanager
def thread_errors() -> Iterator[None]:
    """Turn the RuntimeError of a thread that cannot be started into an EmaError with a hint."""
    try:
        yield
    except RuntimeError as error:
        raise EmaError(f"no thread can be started: {error}", hint=f"use fewer {option('threads')}") from error


@contextmanager
def reading_pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose threads read. After an error or Ctrl-C they are not waited for."""
    from concurrent.futures import ThreadPoolExecutor  # which a start without threads does not need

    pool = ThreadPoolExecutor(threads, name)
    try:
        with thread_errors():
            yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
