"""A link that makes a server on this machine far away: requests wait, and connections carry so many bytes a second.

It passes bytes on as they come, and knows nothing of HTTP: what a client sends after an answer is a request.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

_PIECE = 1 << 17


@contextmanager
def slow_link(server: tuple[str, int], latency: float, rate: float) -> Iterator[str]:
    """Yield host and port of the near end.

    Args:
        server: host and port of the far end.
        latency: seconds that each request waits.
        rate: bytes a second of the answers on one connection.
    """
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    threading.Thread(target=_accept, args=(listening, server, latency, rate), daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def _accept(listening: socket.socket, server: tuple[str, int], latency: float, rate: float) -> None:
    with suppress(OSError):  # it is closed in the end
        while True:
            near, _ = listening.accept()
            far = socket.create_connection(server)
            threading.Thread(target=_ask, args=(near, far, latency), daemon=True).start()
            threading.Thread(target=_answer, args=(far, near, rate), daemon=True).start()


def _ask(near: socket.socket, far: socket.socket, latency: float) -> None:
    """Pass requests on, each some time after it came."""
    with suppress(OSError):
        while piece := near.recv(_PIECE):
            time.sleep(latency)
            far.sendall(piece)
        far.shutdown(socket.SHUT_WR)


def _answer(far: socket.socket, near: socket.socket, rate: float) -> None:
    """Pass answers on, no faster than the link; the bytes do not come into this process."""
    out, into = os.pipe()
    due = 0.0
    try:
        with closing(near), closing(far), suppress(OSError):
            while count := os.splice(far.fileno(), into, _PIECE):
                due = max(due, time.monotonic() - 0.01) + count / rate
                while count:
                    count -= os.splice(out, near.fileno(), count)
                time.sleep(max(0.0, due - time.monotonic()))
            near.shutdown(socket.SHUT_RDWR)  # closing alone waits for the other thread
    finally:
        os.close(out)
        os.close(into)
