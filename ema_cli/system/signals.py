"""Signals that end the program: they unwind it, but never in the middle of a step that must be whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal that ends the program. Not an Exception: nothing on the way up may swallow it."""

    def __init__(self, number: int) -> None:
        self.number = number


def install() -> None:
    """Make the ending signals end the program at once, with the exit code that a shell would give.

    At once, and not by an exception: Python prints and swallows what is raised in a finalizer, and imports are full
    of them. Signals that are ignored, as under nohup, stay so.
    """
    _handle(_end)


@contextmanager
def unwinding() -> Iterator[None]:
    """Make the ending signals raise `Interrupted` in the block: there is something to tidy up."""
    try:
        _handle(_interrupt)
        yield
    finally:
        for number in _ENDING:
            # Not after an interrupt: what it left to the interpreter's exit must not be interrupted.
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, _end)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    # One is enough: a second signal must not interrupt the clean-up.
    _handle(_ignore)
    raise Interrupted(number)


def _ignore(number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, for which Python prints a traceback if a signal came just before."""


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
