"""One request for a range of an object in a store, whose bytes are taken in order, in pieces as they come.

All of them are of the object that was listed: the request asks for it by its ETag, and the answer says which it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from ema_cli.errors import CheckpointError, Missing, Unreadable
from ema_cli.storage.names import WEB, StorePath
from ema_cli.storage.source import HINT_REWRITTEN
from ema_cli.storage.store.clients import client_of, failures, is_plain, obstore, store_errors
from ema_cli.storage.store.requests import answered_in_main, content_of, key_of, look_at
from ema_cli.storage.store.stored_object import StoredObject, tag_of

if TYPE_CHECKING:
    from ema_cli.storage.store.straight import Straight

_PIECE_BYTES = 1 << 18  # that are received before they are handed on
_LONG_PIECE_BYTES = 1 << 19  # the same, over a connection of ours
_LONG_BYTES = 1 << 20  # of a request that is worth a connection of its own
_MOST_STREAMS = 16  # of obstore's in the place of connections of ours: each takes 2.5 MB of memory
_streams = WeakSet["ObjectPieces"]()  # those


class Pieces:
    """Bytes that are received in order, in pieces: here those of an iterator."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces

    @property
    def descriptor(self) -> int | None:
        """Return one whose next bytes are the next ones here, if there is one."""
        return None

    def receive(self, size: int | None = None) -> memoryview:
        """Return the next piece. It may be of any size, and is of `size` bytes where that can be chosen."""
        return next(self._pieces)

    def skip(self, size: int) -> None:
        """Go on behind so many bytes, which have been read from the descriptor."""
        raise AssertionError("there is no descriptor")

    def close(self) -> None:
        """Give up what is still to come."""


class ObjectPieces(Pieces):
    """The bytes of an object from `begin` to `end`. They are asked for when the first piece is received.

    What is not received yet waits in the buffers of the connection. A body that is cut goes on where it stopped.
    """

    def __init__(self, path: StorePath, stored: StoredObject, begin: int, end: int) -> None:
        self._path, self._stored = path, stored
        self._at, self._end = begin, end
        self._is_asked = False
        self._could_be_straight = False
        self._straight: Straight | None = None
        self._answer: Iterator[Any] | None = None  # obstore's

    @property
    def descriptor(self) -> int | None:
        """Return that of the connection, where the bytes come over one of ours."""
        return None if self._straight is None else self._straight.descriptor

    def skip(self, size: int) -> None:
        """Go on behind so many bytes, which have been read from the descriptor."""
        self._at += size
        if self._at == self._end:
            self.close()
            _streams.discard(self)

    def close(self) -> None:
        """Close the connection, if it is ours: what is still to come comes over another."""
        if self._straight is not None:
            self._straight.close()
            self._straight = None

    def receive(self, size: int | None = None) -> memoryview:
        """Return the next piece.

        Raises:
            CheckpointError: where another object has taken its place, it is gone, or it cannot be read.
        """
        if not self._is_asked:
            self._is_asked = True
            self._straight = self._ask_straight()
        piece = None
        if self._straight is not None:
            piece = self._straight.receive(min(size or _LONG_PIECE_BYTES, self._end - self._at))
        if piece is None:
            self.close()
            piece = self._receive(size)
        self.skip(len(piece))
        return piece

    def __iter__(self) -> Iterator[memoryview]:
        while self._at < self._end:
            yield self.receive()

    def _ask_straight(self) -> Straight | None:
        if self._end - self._at < _LONG_BYTES or not is_plain(self._path):
            return None
        # This imports what a start need not wait for.
        from ema_cli.storage.store.straight import ask_straight, refuses_us

        if refuses_us(self._path):
            return None
        self._could_be_straight = True
        return ask_straight(self._path, self._stored, self._at, self._end)

    def _receive(self, size: int | None) -> memoryview:
        """Return the next piece as obstore has it; by a request of its own, where enough others are under way."""
        errors: tuple[type[Exception], ...] = (CheckpointError, *failures())
        try:
            if self._answer is None and self._is_one_of_many():
                end = min(self._at + max(size or 0, _PIECE_BYTES), self._end)
                piece = answered_in_main(partial(_ask_whole, self._path, self._stored, self._at, end))
            else:
                if self._answer is None:
                    ask = partial(_ask, self._path, self._stored, self._at, self._end)
                    self._answer = answered_in_main(ask)
                piece = memoryview(answered_in_main(partial(next, self._answer, b"")))
        except errors as error:
            _explain(self._path, self._stored, self._at, error)
        if not 0 < len(piece) <= self._end - self._at:
            raise _changed(self._path)
        return piece

    def _is_one_of_many(self) -> bool:
        """Return whether enough others are under way that were to be made over connections of ours, as this one."""
        if not self._could_be_straight:
            return False
        if len(_streams) >= _MOST_STREAMS:
            return True
        _streams.add(self)
        return False


def _explain(path: StorePath, stored: StoredObject, begin: int, error: Exception) -> NoReturn:
    """Raise an error as what it means of the object, and of the byte that was to come next."""
    try:
        with store_errors(path, f"cannot be read at byte {begin}"):
            raise error
    except CheckpointError as meant:
        with suppress(Unreadable):  # the first error says more
            check_same(path, stored)
        meant.at_byte = begin
        raise


def _ask(path: StorePath, stored: StoredObject, begin: int, end: int) -> Iterator[Any]:
    """Make the request, and return the pieces of its answer."""
    # rclone 1.75 answers every range with status 200, which obstore refuses; a whole object needs no range.
    options: dict[str, object] = {} if (begin, end) == (0, stored.size) else {"range": (begin, end)}
    if stored.condition is not None:
        options["if_match"] = stored.condition
    answer = obstore().get(client_of(path), key_of(path), options=options)
    # Some servers do not look at the condition, but all say what they send.
    if not stored.is_tagged(tag_of(answer.meta)):
        raise _changed(path)
    return iter(answer.stream(min_chunk_size=_PIECE_BYTES))


def _ask_whole(path: StorePath, stored: StoredObject, begin: int, end: int) -> memoryview:
    """Make the request, and return all that it brings."""
    data, at = memoryview(bytearray(end - begin)), 0
    for piece in _ask(path, stored, begin, end):
        data[at : at + len(piece)] = memoryview(piece)
        at += len(piece)
    return data[:at]


def check_same(path: StorePath, stored: StoredObject) -> None:
    """Ask the store whether an object is the one that it described before.

    Raises:
        Missing: where it is gone.
        Unreadable: where the store does not say.
        CheckpointError: where it is another.
    """
    try:
        with store_errors(path, "cannot be looked at"):
            meta = content_of(path, (0, 1))[0] if path.scheme in WEB else look_at(path)
    except Missing as error:
        raise Missing("disappeared while it was used", subject=path) from error
    if not stored.is_tagged(tag_of(meta)) or int(meta["size"]) != stored.size:
        raise _changed(path)


def _changed(path: StorePath) -> CheckpointError:
    return CheckpointError("changed while it was used", subject=path, hint=HINT_REWRITTEN)
