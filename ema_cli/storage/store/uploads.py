"""An object on its way into a store: sent in parts while it is made, and there as a whole once it is completed.

The store keeps what was sent and shows none of it until then; a run that fails tells it to forget the parts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue

from ema_cli.errors import OutputError
from ema_cli.storage.names import StorePath
from ema_cli.storage.store.clients import client_of, obstore, output_errors_in_store
from ema_cli.storage.store.requests import give_up, patience_seconds
from ema_cli.system.signals import ending_since

_LEAST_PART_BYTES = 5 << 20  # S3 takes no smaller one but the last
_PART_BYTES = 8 << 20
_MOST_PARTS = 9_000  # of one object: stores take 10,000
_SENT_BYTES = 48 << 20  # of the parts of one object that are on their way
_PARTS_AT_ONCE = 4
_WAITING_PIECES = 2  # that were handed over and are in no part yet
_TICK_SECONDS = 0.2
_PATIENCE_SECONDS = 10.0  # for the end of uploads, unless the program is to end


def part_bytes(size: int) -> int:
    """Return the size of the parts of an object.

    All are equal but the last, which is in memory until the upload is completed: it has at most as many bytes as there
    are parts, unless the whole object is smaller than any part.
    """
    if size <= _LEAST_PART_BYTES:
        return _LEAST_PART_BYTES
    least = max(_LEAST_PART_BYTES if size < 2 * _PART_BYTES else _PART_BYTES, -(-size // _MOST_PARTS))
    return (size - 1) // max(1, (size - 1) // least)


def parts_at_once(size: int, objects: int = 1) -> int:
    """Return how many parts of an object of `size` bytes are sent at once, where so many objects are."""
    return min(max(1, _SENT_BYTES // objects // part_bytes(size) - 1), _PARTS_AT_ONCE)


def sending_bytes(size: int, objects: int = 1) -> int:
    """Return the memory that an object of `size` bytes takes while it is sent: the parts on their way, and the next."""
    return min(size, part_bytes(size) * (parts_at_once(size, objects) + 1))


def abort(uploads: Iterable[Upload]) -> bool:
    """Let the store forget what was sent. One that does not answer is not waited for long; return whether it did."""
    is_ending = ending_since() is not None
    stopped, deadline = list(uploads), time.monotonic() + (patience_seconds() if is_ending else _PATIENCE_SECONDS)
    for upload in stopped:
        upload.stop()
    have_ended = all(upload.has_ended(max(0.0, deadline - time.monotonic())) for upload in stopped)
    if is_ending and not have_ended:
        give_up()
    return have_ended


def held_bytes(size: int) -> int:
    """Return the memory that an object of `size` bytes takes from when it was sent until it is completed."""
    return size if size <= _LEAST_PART_BYTES else _MOST_PARTS


class Upload:
    """One object that is sent piece by piece, in order.

    Args:
        path: where it will be.
        size: how many bytes it will have.
        objects: how many are sent at once.
    """

    def __init__(self, path: StorePath, size: int, objects: int = 1) -> None:
        self._path = path
        self._size = size
        self._at_once = parts_at_once(size, objects)
        self._pieces: Queue[bytes | None] = Queue(_WAITING_PIECES)
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._error: BaseException | None = None
        self._aborted = False

    def send(self, piece: bytes) -> None:
        """Hand over the next piece; it waits while too much is on its way.

        Raises:
            OutputError: where the store refuses, or the upload was aborted.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._put(piece)

    def end(self) -> None:
        """Let the store put the parts together, as soon as all are there; `wait` for it."""
        if self._thread.ident is None:
            self._thread.start()
        self._put(None)

    def wait(self) -> None:
        """Wait until the object is there.

        Raises:
            OutputError: where the store refuses.
        """
        while self._thread.is_alive():
            self._check()
            self._thread.join(_TICK_SECONDS)
        self._check()

    def stop(self) -> None:
        """Let the store forget what was sent, and a thread go that waits in `send` or `wait`."""
        self._aborted = True
        with suppress(Full):
            self._pieces.put_nowait(None)

    def has_ended(self, seconds: float) -> bool:
        """Return whether the store has nothing more to answer; wait so long for that."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _put(self, piece: bytes | None) -> None:
        while True:
            self._check()
            with suppress(Full):
                self._pieces.put(piece, timeout=_TICK_SECONDS)
                return

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._aborted:
            raise OutputError("the upload was stopped", subject=self._path)

    def _run(self) -> None:
        try:
            with output_errors_in_store(self._path):
                obstore().put(
                    client_of(self._path),
                    self._path.key,
                    self._taken(),
                    chunk_size=part_bytes(self._size),
                    max_concurrency=self._at_once,
                )
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error

    def _taken(self) -> Iterator[bytes]:
        """Yield the pieces; an error in here makes obstore abort the upload."""
        while True:
            try:
                piece = self._pieces.get(timeout=_TICK_SECONDS)
            except Empty:
                piece = b""
            if self._aborted:
                raise OutputError("the upload was stopped", subject=self._path)
            if piece is None:
                return
            if piece:
                yield piece
