"""A store that does not answer: signals are seen meanwhile, and at the end of a program it is not waited for long."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ema_cli.storage.names import StorePath
from ema_cli.storage.store import requests
from ema_cli.storage.store.requests import answered, answered_in_main, is_given_up
from ema_cli.storage.store.uploads import Upload, abort
from ema_cli.system import signals
from ema_cli.system.signals import Interrupted, deferred_signals
from tests.storage.stores import obstore

NO_ANSWER = "no answer came"


@pytest.fixture(autouse=True)
def _handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the handlers that Python begins with, and wait for less than a second; a command run here leaves its own."""
    monkeypatch.setattr(requests, "_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(requests, "_LITTLE_PATIENCE_SECONDS", 0.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def silence() -> Iterator[Callable[[], object]]:
    """Return a request that nobody answers until the end of the test."""
    over = threading.Event()
    yield over.wait
    over.set()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("ask", [answered, answered_in_main])
def test_a_signal_is_seen_while_an_answer_is_awaited(
    ask: Callable[[Callable[[], object]], object], silence: Callable[[], object]
):
    """At once, though the one who asks the store hears of none."""
    threading.Timer(0.1, interrupt).start()
    with pytest.raises(Interrupted), signals.unwinding():
        ask(silence)


def test_once_the_program_is_to_end_an_answer_is_not_awaited_for_long(silence: Callable[[], object]):
    """In an indivisible step, too: it is an error of the store's. What does answer is still heard."""

    def step() -> None:
        with deferred_signals():
            interrupt()
            assert answered(lambda: 1) == 1
            assert not is_given_up()
            for _ in range(2):
                with pytest.raises(obstore.exceptions.GenericError, match=NO_ANSWER):
                    answered(silence)
                assert is_given_up()
            assert answered(lambda: 2) == 2

    with pytest.raises(Interrupted), signals.unwinding():
        step()
    assert not is_given_up(), "the next run waits for as long as any"


def test_uploads_that_do_not_end_are_an_answer_that_did_not_come(silence: Callable[[], object]):
    """What is asked after them is not awaited for long again, nor are they after such an answer: one wait in all."""
    upload = Upload(StorePath("memory://silent/x.bin"), 1)
    upload._thread = threading.Thread(target=silence, daemon=True)
    upload._thread.start()

    def step() -> None:
        with deferred_signals():
            interrupt()
            began = time.monotonic()
            assert not abort([upload])
            assert is_given_up()
            for _ in range(3):
                with pytest.raises(obstore.exceptions.GenericError, match=NO_ANSWER):
                    answered(silence)
                assert not abort([upload])
            assert time.monotonic() - began < 2

    with pytest.raises(Interrupted), signals.unwinding():
        step()


def test_a_first_signal_after_which_there_is_something_to_finish_gives_nothing_up(silence: Callable[[], object]):
    """A second one does."""
    late = threading.Event()

    def step() -> None:
        with deferred_signals():
            interrupt()
            threading.Timer(0.7, late.set).start()
            assert answered(late.wait)
            interrupt()
            with pytest.raises(obstore.exceptions.GenericError, match=NO_ANSWER):
                answered(silence)

    with pytest.raises(Interrupted), signals.finishing():
        step()


def test_who_called_from_python_goes_on_after_a_signal(silence: Callable[[], object]):
    """As a notebook does: what is asked later is waited for as ever."""

    def step() -> None:
        with deferred_signals():
            interrupt()
            with pytest.raises(obstore.exceptions.GenericError, match=NO_ANSWER):
                answered(silence)

    with pytest.raises(KeyboardInterrupt):
        step()
    assert signals.ending_since() is None


def test_an_error_is_that_of_the_request():
    """Of whatever kind."""

    def fail() -> object:
        raise KeyError("x")

    with pytest.raises(KeyError):
        answered(fail)
