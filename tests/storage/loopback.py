"""Servers of tests: they answer on the loopback address, in threads of this process, or pass on what they are asked."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOPS = {"connection", "transfer-encoding", "keep-alive"}  # headers that are between two, and not passed on


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its body, and its headers, besides the length of the body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Reads whole requests, and gives answers whose length is known."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the other end to say that it has the headers

    def handle_any(self) -> None:
        """Answer a request, whatever its method is."""
        raise NotImplementedError

    def _handle(self) -> None:
        self.handle_any()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - so http.server calls them

    def body(self) -> bytes:
        """Return the body of the request, which is read once."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def ask(self, upstream: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Return what the server at `upstream`, which is host:port, answers to the same request with these headers."""
        connection = http.client.HTTPConnection(upstream, timeout=60)
        with closing(connection):
            connection.request(self.command, self.path, body, _between_ends(headers))
            with closing(connection.getresponse()) as answer:  # which holds the socket until it is read
                return Answer(answer.status, answer.read(), dict(answer.getheaders()))

    def give(self, answer: Answer) -> None:
        """Send an answer; to HEAD without its body, whose length headers may tell."""
        self.send_response_only(answer.status)
        headers = {"Content-Length": str(len(answer.body)), **_between_ends(answer.headers)}
        for name, value in headers.items():
            self.send_header(name, value)
        with suppress(OSError):  # whoever asked may be gone
            self.end_headers()
            if self.command != "HEAD":
                self.give_body(answer.body)

    def give_body(self, body: bytes) -> None:
        """Send the body of an answer."""
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _between_ends(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOPS}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # of a program that asks for much at once

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of who has gone before all was sent."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **attributes: object) -> Iterator[str]:
    """Yield the address of a server whose handlers have these attributes; it ends with the block."""
    server = _Server(("127.0.0.1", 0), type("Handler", (handler,), attributes))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
