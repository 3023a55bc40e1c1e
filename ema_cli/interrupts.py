"""Signals that end the program: they unwind it, but never in the middle of a step that must be whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal that ends the program. Not an Exception: nothing on the way up may swallow it."""

    def __init__(self, number: int) -> None:
        self.number = number


def install() -> None:
    """Make the ending signals raise `Interrupted`, except those that are ignored, as under nohup."""
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    # One is enough: a second signal must not interrupt the clean-up.
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold back the ending signals until the block is done.

    By handlers of our own: a mask holds for one thread only, and libraries have threads that would take the signal
    and let Python run its handler in the main one all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in handlers.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
