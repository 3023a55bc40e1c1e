"""A stand-in for Google Cloud Storage: before a server that speaks S3, what knows Google's conditions and generations.

What obstore sends to Google is nearly what it sends to S3. This passes it on, and does itself what differs: an object
has a generation, a new one each time it is put, and a request may ask for one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from tests.storage.loopback import Answer, Handler, serving

_CONDITION = "x-goog-if-generation-match"
_OWN = {"authorization", "host", _CONDITION}  # headers that are not passed on
# By it moto knows that a user asks; it checks no signature.
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"


@dataclass(slots=True)
class Google:
    """The stand-in.

    Attributes:
        upstream: host and port of the server that speaks S3, without signatures.
        address: where it listens.
        asked: the method of each request, and its path with its query.
        conditions: the generations that requests asked for; 0 for none.
    """

    upstream: str
    address: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    conditions: list[int] = field(default_factory=list)
    generations: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1_000_000))
    lock: threading.RLock = field(default_factory=threading.RLock)


class _Handler(Handler):
    google: Google

    def handle_any(self) -> None:
        """Pass a request on, if the generation is the one that it asks for."""
        body = self.body()
        google, key = self.google, self.path.partition("?")[0]
        google.asked.append((self.command, self.path))
        wanted = self.headers.get(_CONDITION)
        if wanted is None:
            self._pass(key, body)
            return
        with google.lock:
            google.conditions.append(int(wanted))
            if int(wanted) == google.generations.get(key, 0):
                self._pass(key, body)
            else:
                self.give(Answer(412, b"<Error><Message>the generation is another one</Message></Error>"))

    def _pass(self, key: str, body: bytes) -> None:
        google = self.google
        headers = {
            name.replace("x-goog-copy-source", "x-amz-copy-source"): value
            for name, value in self.headers.items()
            if name.lower() not in _OWN
        }
        answer = self.ask(google.upstream, body, {**headers, "Authorization": _SIGNED})
        with google.lock:
            if answer.status < 300 and self._makes():
                google.generations[key] = next(google.numbers)
            elif answer.status < 300 and self.command == "DELETE" and "uploadId" not in self.path:
                google.generations.pop(key, None)
            told = {"x-goog-generation": str(google.generations[key])} if key in google.generations else {}
        self.give(Answer(answer.status, answer.body, {**answer.headers, **told}))

    def _makes(self) -> bool:
        """Return whether the request puts an object in its place."""
        is_part = "partNumber" in self.path
        return (self.command == "PUT" and not is_part) or (self.command == "POST" and "uploadId" in self.path)


@contextmanager
def running_google(upstream: str) -> Iterator[Google]:
    """Yield a stand-in before the server at `upstream`, which is host:port."""
    google = Google(upstream)
    with serving(_Handler, google=google) as google.address:
        yield google
