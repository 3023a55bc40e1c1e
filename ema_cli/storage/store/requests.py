"""What is asked of a store, in threads of its own: so a signal is seen while an answer is awaited.

A call of obstore's ends with the answer, or after minutes. Until then its thread runs no Python, and in the main thread
that is no handler of a signal either. Once the program is to end, an answer is awaited for seconds only: what follows
is clean-up, and each of its steps is one that a store may refuse.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

from ema_cli.storage.names import WEB, StorePath
from ema_cli.storage.store.clients import client_of, obstore
from ema_cli.system.signals import ending_since
from ema_cli.system.threads import WAITS_FOR_STORE, thread_errors

_TICK_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0  # for an answer, once the program is to end
_LITTLE_PATIENCE_SECONDS = 0.5  # the same, once one did not come
_TRIES = 3  # of a removal, and of a listing
_CUT = "list response body"

T = TypeVar("T")
_unanswered: float | None = None  # the end of the program for which an answer did not come


def answered(ask: Callable[[], T]) -> T:
    """Return what `ask` brings, or raise its error; it runs in a thread of its own.

    Raises:
        obstore.exceptions.GenericError: where no answer comes though the program is to end.
        EmaError: where no thread can be started.
    """
    began, future = time.monotonic(), Future[T]()

    def run() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
            future.set_exception(error)

    with thread_errors():
        threading.Thread(target=run, name=WAITS_FOR_STORE, daemon=True).start()
    while not wait([future], _TICK_SECONDS).done:
        since = ending_since()
        if since is not None and time.monotonic() > max(since, began) + patience_seconds():
            give_up()
            raise obstore().exceptions.GenericError("no answer came until the end of the program")
    return future.result()


def answered_in_main(ask: Callable[[], T]) -> T:
    """Return what `ask` brings: in the main thread as `answered`, in others directly, as nobody need wait for these."""
    return answered(ask) if threading.current_thread() is threading.main_thread() else ask()


def patience_seconds() -> float:
    """Return how long an answer is awaited once the program is to end: not long any more where one did not come."""
    return _LITTLE_PATIENCE_SECONDS if is_given_up() else _PATIENCE_SECONDS


def give_up() -> None:
    """Note that an answer did not come though the program is to end."""
    global _unanswered
    _unanswered = ending_since()


def is_given_up() -> bool:
    """Return whether the program ends while a store has not answered: it may still do what it was asked for."""
    return _unanswered is not None and _unanswered == ending_since()


def key_of(path: StorePath) -> str:
    """Return the key of an object, as its client takes it: that of a web server is of the one file."""
    return "" if path.scheme in WEB else path.key


def look_at(path: StorePath) -> Mapping[str, Any]:
    """Return what the store says of an object."""
    found: Mapping[str, Any] = answered(lambda: obstore().head(client_of(path), key_of(path)))
    return found


def content_of(
    path: StorePath, part: tuple[int, int] | None = None, *, most: int | None = None
) -> tuple[Mapping[str, Any], bytes]:
    """Return what the store says of an object, and its bytes: those of a part, where one is named, from and to.

    None of these where the object has more than `most`.
    """

    def ask() -> tuple[Mapping[str, Any], bytes]:
        options = {} if part is None else {"range": part}
        answer = obstore().get(client_of(path), key_of(path), options=options)
        is_long = most is not None and int(answer.meta["size"]) > most
        return answer.meta, b"" if is_long else bytes(answer.bytes())

    return answered(ask)


def put(path: StorePath, content: bytes, mode: Any = None) -> Mapping[str, Any]:
    """Put a small object, in one request; return what the store says of it."""
    said: Mapping[str, Any] = answered(
        lambda: obstore().put(client_of(path), path.key, content, mode=mode, use_multipart=False)
    )
    return said


def copy(source: StorePath, path: StorePath) -> None:
    """Have the store copy an object to another place in its bucket."""
    answered(lambda: obstore().copy(client_of(path), source.key, path.key))


def remove(path: StorePath) -> None:
    """Remove an object. obstore does not ask again where the answer was cut; to remove what is gone does no harm."""
    for _ in range(_TRIES - 1):
        with suppress(obstore().exceptions.GenericError):
            answered(lambda: obstore().delete(client_of(path), path.key))
            return
    answered(lambda: obstore().delete(client_of(path), path.key))


def listed(ask: Callable[[], T]) -> T:
    """Return what `ask` makes of a listing. obstore asks once more for what a store refuses, not for a cut answer."""
    for _ in range(_TRIES - 1):
        try:
            return answered(ask)
        except obstore().exceptions.GenericError as error:
            if _CUT not in str(error):
                raise
    return answered(ask)
