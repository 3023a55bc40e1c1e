"""Receive the bytes of an object straight into memory, where the store is reached without TLS.

obstore copies each byte twice before it can be had, and in a fast network the processor is what limits. So from a store
of one's own, whose address begins with http://, the bytes come over a connection of ours, for a request that obstore
has signed. Whatever goes otherwise than well is left to obstore: it waits, asks again, and says what happened.
"""

from __future__ import annotations

import io
import socket
import struct
import time
import weakref
from contextlib import suppress
from datetime import timedelta
from functools import cache
from http.client import OK, PARTIAL_CONTENT, HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from ema_cli.storage.names import WEB, StorePath
from ema_cli.storage.store import clients
from ema_cli.storage.store.stored_object import StoredObject

_PLAIN = "http"
_SIGNED_FOR = timedelta(minutes=15)  # as long as a signature in a header would hold
_REFUSED_SECONDS = 60.0  # for which a store that refused, or asked to be left alone, is left to obstore
_HELD_BYTES = 4 << 20  # by the system: a connection that is served while others are, too, is to have no pause
_MOST_HELD = Path("/proc/sys/net/core/rmem_max")
_refused_until: dict[StorePath, float] = {}  # by bucket
_answers_us: dict[StorePath, bool] = {}  # the same


class Straight:
    """The bytes of one answer, which are received in order."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._socket = connection.sock  # which http.client forgets where the server closes it afterwards
        self._first = b""  # what has come with the headers
        self._to_close: list[HTTPConnection | HTTPResponse | socket.socket] = [connection, self._socket]
        self.close = weakref.finalize(self, _close_all, self._to_close)
        self.close.atexit = False
        if _may_hold_much():
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _HELD_BYTES)

    def ask(self, target: str, stored: StoredObject, begin: int, end: int) -> bool:
        """Ask for bytes of an object; return whether these come, and are of the object."""
        is_all = (begin, end) == (0, stored.size)
        headers = {} if is_all else {"Range": f"bytes={begin}-{end - 1}"}
        if stored.condition is not None:
            headers["If-Match"] = stored.condition
        # Python waits for the headers, and raises an error: it takes the system's end of a wait for the end of these.
        self._socket.settimeout(clients.SILENCE.total_seconds())
        self._connection.request("GET", target, headers=headers)
        answer = self._connection.getresponse()
        self._to_close.append(answer)
        if (
            answer.status != (OK if is_all else PARTIAL_CONTENT)
            or answer.getheader("Content-Range", "") != ("" if is_all else f"bytes {begin}-{end - 1}/{stored.size}")
            or answer.length != end - begin
            or not stored.is_tagged(answer.getheader("ETag", ""))
        ):
            return False
        _let_system_wait(self._socket)
        self._first = answer.read1(io.DEFAULT_BUFFER_SIZE)
        return True

    @property
    def descriptor(self) -> int | None:
        """Return that of the connection, whose next bytes are the next ones; None before any were received."""
        return None if self._first else self._socket.fileno()

    def receive(self, size: int) -> memoryview | None:
        """Return the next bytes, `size` of them, which there are; None where they do not come."""
        piece = memoryview(bytearray(max(size, len(self._first))))
        at = len(self._first)
        piece[:at], self._first = self._first, b""
        with suppress(OSError):
            while at < len(piece):
                got = self._socket.recv_into(piece[at:], 0, socket.MSG_WAITALL)
                if not got:
                    return None
                at += got
            return piece
        return None


def ask_straight(path: StorePath, stored: StoredObject, begin: int, end: int) -> Straight | None:
    """Ask for the bytes of an object from `begin` to `end`; None where they do not come."""
    bucket = path.whole_bucket
    if time.monotonic() < _refused_until.get(bucket, 0.0):
        return None
    # Errors of obstore's are of what it cannot sign, a ValueError is of an address that http.client cannot send.
    with suppress(OSError, HTTPException, *clients.failures()):
        parts = urlsplit(_address(path))
        if parts.scheme == _PLAIN:
            connection = HTTPConnection(parts.hostname or "", parts.port, timeout=clients.CONNECT.total_seconds())
            connection.connect()
            straight = Straight(connection)
            if straight.ask(parts._replace(scheme="", netloc="", fragment="").geturl(), stored, begin, end):
                return straight
    _refused_until[bucket] = time.monotonic() + _REFUSED_SECONDS
    return None


def answers_us(path: StorePath, stored: StoredObject) -> bool:
    """Return whether a store lets us read over connections of ours: for one byte of an object, once for each bucket."""
    bucket = path.whole_bucket
    if bucket not in _answers_us:
        straight = ask_straight(path, stored, 0, 1)
        _answers_us[bucket] = straight is not None
        if straight is not None:
            straight.close()
    return _answers_us[bucket]


def refuses_us(path: StorePath) -> bool:
    """Return whether it is known that a store does not let us: then all is planned without."""
    return not _answers_us.get(path.whole_bucket, True)


def _close_all(every: list[HTTPConnection | HTTPResponse | socket.socket]) -> None:
    for each in every:
        each.close()


def _address(path: StorePath) -> str:
    """Return where the object is had without a further word; of a store, with a signature."""
    if path.scheme in WEB:
        return f"{path}?{path.query}" if path.query else str(path)
    signed: str = clients.obstore().sign(clients.client_of(path), "GET", path.key, _SIGNED_FOR)
    return signed


def _let_system_wait(connection: socket.socket) -> None:
    """Have the system end a wait, and not Python, as the kernel receives, too."""
    connection.settimeout(None)
    seconds, rest = divmod(clients.SILENCE, timedelta(seconds=1))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, rest.microseconds))


@cache
def _may_hold_much() -> bool:
    """Return whether a program may ask for so much. One that may not would get less than without asking."""
    with suppress(OSError, ValueError):
        return int(_MOST_HELD.read_text()) >= _HELD_BYTES
    return False
