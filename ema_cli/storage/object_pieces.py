"""One request for a range of an object in a store, whose bytes are taken in order, in pieces as they come.

All of them are of the object that was listed: the request asks for it by its ETag, and the answer says which it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from ema_cli.errors import CheckpointError, Missing, Unreadable
from ema_cli.storage.asking import answered_in_main, content_of, key_of, look_at
from ema_cli.storage.listing import StoredObject, tag_of
from ema_cli.storage.names import WEB, StorePath
from ema_cli.storage.stores import client_of, failures, obstore, store_errors

HINT_REWRITTEN = "average a run that is not being rewritten"
_PIECE_BYTES = 1 << 18  # that are received before they are handed on


def pieces_of(path: StorePath, stored: StoredObject, begin: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes of an object from `begin` to `end`. The first is asked for when it is taken.

    What is not taken yet waits in the buffers of the connection. A body that is cut goes on where it stopped.

    Raises:
        CheckpointError: where another object has taken its place, it is gone, or it cannot be read.
    """
    pieces: Iterator[Any] | None = None
    errors: tuple[type[Exception], ...] = (CheckpointError, *failures())
    while begin < end:
        try:
            if pieces is None:
                pieces = answered_in_main(partial(_ask, path, stored, begin, end))
            piece = memoryview(answered_in_main(partial(next, pieces, b"")))
        except errors as error:
            _explain(path, stored, begin, error)
        if not 0 < len(piece) <= end - begin:
            raise _changed(path)
        begin += len(piece)
        yield piece


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
    if stored.is_etag and not stored.tag.startswith("W/"):  # which no server takes for a condition
        options["if_match"] = stored.tag if stored.tag.startswith('"') else f'"{stored.tag}"'
    answer = obstore().get(client_of(path), key_of(path), options=options)
    # Some servers do not look at the condition, but all say what they send.
    if _plain(tag_of(answer.meta)) != _plain(stored.tag):
        raise _changed(path)
    return iter(answer.stream(min_chunk_size=_PIECE_BYTES))


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
    if _plain(tag_of(meta)) != _plain(stored.tag) or int(meta["size"]) != stored.size:
        raise _changed(path)


def _changed(path: StorePath) -> CheckpointError:
    return CheckpointError("changed while it was used", subject=path, hint=HINT_REWRITTEN)


def _plain(tag: str) -> str:
    """Return an ETag as all answers of a store have it: a listing of Azure's leaves out the quotes."""
    return tag.removeprefix("W/").strip('"')
