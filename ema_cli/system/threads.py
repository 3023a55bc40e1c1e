"""Turn the failure to start a thread into an error with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ema_cli.errors import EmaError, option


@contextmanager
def thread_errors() -> Iterator[None]:
    """Turn the RuntimeError of a thread that cannot be started into an EmaError with a hint."""
    try:
        yield
    except RuntimeError as error:
        raise EmaError(f"no thread can be started: {error}", hint=f"use fewer {option('threads')}") from error
