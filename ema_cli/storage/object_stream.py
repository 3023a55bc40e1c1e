"""One request for a range of an object in a store, whose bytes are taken in order, a part at a time.

All of them are of the object that was listed: the request asks for it by its ETag, and the answer says which it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ema_cli.errors import CheckpointError, Missing, Unreadable
from ema_cli.storage.listing import StoredObject, tag_of
from ema_cli.storage.names import WEB, StorePath
from ema_cli.storage.stores import client_of, obstore, store_errors

HINT_REWRITTEN = "average a run that is not being rewritten"
_PIECE_BYTES = 1 << 18  # that are received before they are copied


class ObjectStream:
    """The bytes of an object from `begin` to `end`. Not for several threads at once.

    What is not taken yet waits in the buffers of the connection. A body that is cut goes on where it stopped.

    Raises:
        CheckpointError: where another object has taken its place, it is gone, or it cannot be read.
    """

    def __init__(self, path: StorePath, stored: StoredObject, begin: int, end: int) -> None:
        self._path = path
        self._stored = stored
        self._next = begin
        self._end = end
        self._pieces: Iterator[Any] | None = None
        self._rest = memoryview(b"")  # of the last piece

    def read_into(self, out: memoryview) -> None:
        """Fill `out` with the next bytes. The first call makes the request."""
        count = 0
        try:
            with store_errors(self._path, f"cannot be read at byte {self._next}"):
                if self._pieces is None:
                    self._pieces = self._ask()
                while count < len(out) and (self._rest or self._receive()):
                    taken = min(len(self._rest), len(out) - count)
                    out[count : count + taken] = self._rest[:taken]
                    self._rest = self._rest[taken:]
                    count += taken
        except CheckpointError as error:
            self._check_same()
            error.at_byte = self._next
            raise error
        if count < len(out):
            raise self._changed()
        self._next += count

    def _ask(self) -> Iterator[Any]:
        """Make the request, and return the pieces of its answer."""
        tag = self._stored.tag
        # rclone 1.75 answers every range with status 200, which obstore refuses; a whole object needs no range.
        is_whole = (self._next, self._end) == (0, self._stored.size)
        options: dict[str, object] = {} if is_whole else {"range": (self._next, self._end)}
        if self._stored.is_etag and not tag.startswith("W/"):  # which no server takes for a condition
            options["if_match"] = tag if tag.startswith('"') else f'"{tag}"'
        answer = obstore().get(client_of(self._path), _key(self._path), options=options)
        # Some servers do not look at the condition, but all say what they send.
        if _plain(tag_of(answer.meta)) != _plain(tag):
            raise self._changed()
        return iter(answer.stream(min_chunk_size=_PIECE_BYTES))

    def _receive(self) -> bool:
        """Take the next piece, and return whether there was one."""
        assert self._pieces is not None, "asked for before"
        piece = next(self._pieces, None)
        if piece is not None:
            self._rest = memoryview(piece)
        return piece is not None

    def _check_same(self) -> None:
        """Raise a CheckpointError if the reason why a read failed is that the object is gone, or another."""
        with suppress(Unreadable):  # the first error says more
            check_same(self._path, self._stored)

    def _changed(self) -> CheckpointError:
        return _changed(self._path)


def check_same(path: StorePath, stored: StoredObject) -> None:
    """Ask the store whether an object is the one that it described before.

    Raises:
        Missing: where it is gone.
        Unreadable: where the store does not say.
        CheckpointError: where it is another.
    """
    try:
        with store_errors(path, "cannot be looked at"):
            if path.scheme in WEB:
                meta = obstore().get(client_of(path), _key(path), options={"range": (0, 1)}).meta
            else:
                meta = obstore().head(client_of(path), _key(path))
    except Missing as error:
        raise Missing("disappeared while it was used", subject=path) from error
    if _plain(tag_of(meta)) != _plain(stored.tag) or int(meta["size"]) != stored.size:
        raise _changed(path)


def _changed(path: StorePath) -> CheckpointError:
    return CheckpointError("changed while it was used", subject=path, hint=HINT_REWRITTEN)


def _key(path: StorePath) -> str:
    return "" if path.scheme in WEB else path.key


def _plain(tag: str) -> str:
    """Return an ETag as all answers of a store have it: a listing of Azure's leaves out the quotes."""
    return tag.removeprefix("W/").strip('"')
