"""Handle signals that end the program: they unwind it, but never in the middle of an indivisible step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_published = threading.Event()
_begun = threading.Event()
_ending: float | None = None


class Interrupted(BaseException):
    """A signal that ends the program. Not an Exception: nothing on the way up may swallow it."""

    def __init__(self, number: int) -> None:
        self.number = number


def install() -> None:
    """Make the ending signals end the program at once, with a word and the exit code that a shell would give.

    Not by an exception: Python prints and swallows an exception in a finalizer, and imports run many finalizers.
    Signals that are ignored, as under nohup, stay ignored.
    """
    _handle(_end)


def unwinding() -> AbstractContextManager[None]:
    """Make the ending signals raise `Interrupted` in the block, so that it can clean up."""
    return _handling(_interrupt)


def finishing() -> AbstractContextManager[None]:
    """Make the first ending signal raise `Interrupted` in the block, and a second one end the program at once."""
    return _handling(_interrupt_once)


def ending_since() -> float | None:
    """Return since when the program is to end, by the monotonic clock; None where no signal has said so yet.

    One that is held back counts, too: whoever waits for an answer in an indivisible step need not wait for long then.
    Not the first one of several after which there is still something to finish.
    """
    return _ending


def note_publication() -> None:
    """Note that something was put where it belongs, so that an interrupt does not say that nothing was."""
    _published.set()
    _begun.clear()  # as of one that was tried again


def note_unfinished() -> None:
    """Note that something is left half-done where it belongs: an interrupt must not say that nothing was written."""
    _begun.set()


def last_words(number: int) -> str:
    """Return what a user reads who ended the program; nothing where the terminal went away."""
    if number == signal.SIGHUP:
        return ""
    if _begun.is_set():
        return "interrupted; what was begun in the store is not whole: run this again\n"
    return f"interrupted{'; what was written is whole' if _published.is_set() else ', nothing written'}\n"


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    global _ending
    _ending = None
    try:
        _handle(handler)
        yield
    finally:
        _ending = None
        for number in _ENDING:
            # Not after an interrupt: the rest of the clean-up, at the exit of the interpreter, must not be interrupted.
            if signal.getsignal(number) is handler:
                signal.signal(number, _end)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, last_words(number).encode())  # not by sys.stderr, which may be in the middle of a write
    os._exit(128 + number)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the clean-up.
    _note_end()
    _handle(_ignore)
    raise Interrupted(number)


def _interrupt_once(number: int, _frame: FrameType | None) -> NoReturn:
    _handle(_end)
    raise Interrupted(number)


def _note_end() -> None:
    global _ending
    _ending = _ending or time.monotonic()


def _ignore(number: int, _frame: FrameType | None) -> None:
    """Do nothing. SIG_IGN will not do: Python prints a traceback if a signal came just before it was set."""


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Delay the ending signals until the end of the block.

    Own handlers do it, because a signal mask holds for one thread only: a thread of a library would take the signal,
    and Python would still run its handler in the main thread.
    """
    global _ending
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[signal.Signals] = []
    handlers = {number: signal.getsignal(number) for number in _ENDING}

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(signal.Signals(number))
        if handlers[held[-1]] is not _interrupt_once or len(held) > 1:
            _note_end()

    for number, handler in handlers.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, handler)
        if held:
            if handlers[held[0]] not in _OURS:
                _ending = None  # whoever called us from Python may go on
            signal.raise_signal(held[0])


_OURS: tuple[object, ...] = (_end, _interrupt, _interrupt_once, _ignore)
