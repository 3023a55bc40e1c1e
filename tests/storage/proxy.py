"""A proxy on loopback between obstore and a store, which does to answers what networks and stores do to them."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_STALL_SECONDS = 60
_HOPS = {"connection", "transfer-encoding", "keep-alive"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its number from 0, its method, the path with its query, and the range of bytes that it asks for.

    `signed` says whether a header signs it, `pays` whether it says that who asks pays for it.
    """

    number: int
    method: str
    path: str
    range: str
    signed: bool
    pays: bool = False


Fault = Callable[[Request], str | None]
"""What is done to a request: `cut`, `stall`, `flip` for a byte of its own, the number of a status, or nothing."""


@dataclass(slots=True)
class Proxy:
    """The proxy: where it listens, what it does, and what it was asked.

    Attributes:
        upstream: host and port of the store.
        fault: see `Fault`. It may do what it likes meanwhile, as put another object in the place of one.
        delay: seconds before each answer.
        rate: bytes a second of one connection; 0 for as many as come.
        requests: all that were made.
    """

    upstream: str
    fault: Fault = lambda request: None
    delay: float = 0.0
    rate: int = 0
    requests: list[Request] = field(default_factory=list)
    address: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    passing: int = 0

    def settle(self) -> None:
        """Wait until no request is on its way to the store: not those either whose sender has gone."""
        while self.passing:
            time.sleep(0.01)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request among those that are on their way."""
        with self.lock:
            self.passing += 1
        try:
            yield
        finally:
            with self.lock:
                self.passing -= 1

    def note(self, method: str, path: str, wanted: str, *, signed: bool, pays: bool) -> Request:
        """Add a request to those that were made."""
        with self.lock:
            request = Request(len(self.requests), method, path, wanted, signed, pays)
            self.requests.append(request)
            return request


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        """Pass a request on, and its answer back, or what the fault makes of it."""
        with self.proxy.counted():
            self._pass(self.proxy)

    def _pass(self, proxy: Proxy) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        wanted, signed = self.headers.get("Range", ""), "Authorization" in self.headers
        pays = self.headers.get("x-amz-request-payer") == "requester"
        request = proxy.note(self.command, self.path, wanted, signed=signed, pays=pays)
        fault = proxy.fault(request)
        time.sleep(proxy.delay)
        if fault is not None and fault.isdigit():
            self._answer(int(fault), {}, b"<Error><Message>this is a test</Message></Error>")
            return
        if fault == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
        with_all = {name: value for name, value in self.headers.items() if name.lower() not in _HOPS}
        with closing(upstream):
            try:
                upstream.request(self.command, self.path, body, with_all)
                answer = upstream.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):  # as a store does to parts of an upload that was aborted
                self._answer(503, {}, b"")
                return
        self._answer(answer.status, dict(answer.getheaders()), content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - so http.server calls them

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str | None = None) -> None:
        self.send_response_only(status)
        headers = {name: value for name, value in headers.items() if name.lower() not in _HOPS}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        with suppress(OSError):
            self.end_headers()
            self._send(body[: len(body) // 2] if fault in ("cut", "stall") else body)
        if fault == "stall":
            self.proxy.stopped.wait(_STALL_SECONDS)
        if fault in ("cut", "stall"):
            self.close_connection = True

    def _send(self, body: bytes) -> None:
        step = max(1, self.proxy.rate // 50) if self.proxy.rate else max(1, len(body))
        for begin in range(0, len(body), step):
            self.wfile.write(body[begin : begin + step])
            if self.proxy.rate:
                time.sleep(step / self.proxy.rate)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


@contextmanager
def running_proxy(upstream: str) -> Iterator[Proxy]:
    """Yield a proxy that runs before the store at `upstream`, which is host:port."""
    proxy = Proxy(upstream)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    proxy.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
