"""A proxy on loopback between obstore and a store, which does to answers what networks and stores do to them."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.storage.loopback import Answer, Handler, serving

_STALL_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its number from 0, its method, the path with its query, and the range of bytes that it asks for.

    `signed` says whether a header or the address signs it, `pays` whether it says that who asks pays for it.
    """

    number: int
    method: str
    path: str
    range: str
    signed: bool
    pays: bool = False


Fault = Callable[[Request], str | None]
"""What is done to a request: `cut`, `stall`, `flip` for a byte of its own, the number of a status, or nothing.

To one that meets `silence` nothing is answered, and the store does not get it.
"""


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


class _Handler(Handler):
    proxy: Proxy
    fault: str | None = None  # of the request at hand

    def handle_any(self) -> None:
        """Pass a request on, and its answer back, or what the fault makes of it."""
        with self.proxy.counted():
            self._pass(self.proxy)

    def _pass(self, proxy: Proxy) -> None:
        body = self.body()
        wanted = self.headers.get("Range", "")
        signed = "Authorization" in self.headers or "X-Amz-Signature=" in self.path
        pays = self.headers.get("x-amz-request-payer") == "requester"
        request = proxy.note(self.command, self.path, wanted, signed=signed, pays=pays)
        fault = self.fault = proxy.fault(request)
        time.sleep(proxy.delay)
        if fault == "silence":
            proxy.stopped.wait(_STALL_SECONDS)
            self.close_connection = True
            return
        if fault is not None and fault.isdigit():
            self.give(Answer(int(fault), b"<Error><Message>this is a test</Message></Error>"))
            return
        if fault == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        try:
            answer = self.ask(proxy.upstream, body, dict(self.headers))
        except (OSError, http.client.HTTPException):  # as a store does to parts of an upload that was aborted
            self.give(Answer(503))
            return
        self.give(answer)
        if fault == "stall":
            proxy.stopped.wait(_STALL_SECONDS)
        if fault in ("cut", "stall"):
            self.close_connection = True

    def give_body(self, body: bytes) -> None:
        """Send the body as fast as the connection is, or half of it where it is cut."""
        body = body[: len(body) // 2] if self.fault in ("cut", "stall") else body
        step = max(1, self.proxy.rate // 50) if self.proxy.rate else max(1, len(body))
        for begin in range(0, len(body), step):
            self.wfile.write(body[begin : begin + step])
            if self.proxy.rate:
                time.sleep(step / self.proxy.rate)


@contextmanager
def running_proxy(upstream: str) -> Iterator[Proxy]:
    """Yield a proxy that runs before the store at `upstream`, which is host:port."""
    proxy = Proxy(upstream)
    with serving(_Handler, proxy=proxy) as proxy.address:
        try:
            yield proxy
        finally:
            proxy.stopped.set()
