"""Uploads that a run has left unfinished in S3, which keeps their parts, and asks for their price, until it is told.

obstore completes and aborts its own uploads only. These few requests are signed here, with the keys of the environment
or those that boto3 finds; without any of them nothing is done.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module

from ema_cli.dataclass import dataclass
from ema_cli.storage.names import StorePath
from ema_cli.storage.store.clients import endpoint
from ema_cli.storage.store.requests import answered

_SECONDS = 30.0
_AT_ONCE = 1000  # uploads in one answer: S3 lists no more
_MOST_BYTES = 8 << 20  # of that answer
_UPLOAD = re.compile(r"<Upload>.*?</Upload>", re.DOTALL)
_MORE = re.compile(r"<IsTruncated>\s*true\s*</IsTruncated>")
_EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class _Keys:
    """What signs requests."""

    key: str
    secret: str
    token: str
    region: str


def abort_unfinished(target: StorePath) -> int:
    """Abort the uploads of a place in S3 and below it; return how many. Nothing that fails here is an error."""
    aborted = 0
    try:
        keys = _find_keys() if target.scheme == "s3" else None
        if keys is None:
            return 0
        for name, upload in _unfinished(target, keys):
            if name == target.key or name.startswith(f"{target.key}/"):
                with suppress(urllib.error.HTTPError):  # whoever sends may have done it meanwhile
                    _ask("DELETE", target.bucket, name, {"uploadId": upload}, keys)
                    aborted += 1
    except Exception:  # noqa: BLE001 - boto3 may raise anything; a lifecycle rule of the bucket does it, too
        return aborted
    return aborted


def _unfinished(target: StorePath, keys: _Keys) -> Iterator[tuple[str, str]]:
    """Yield key and id of each upload whose key begins with that of a place. The store lists a page at a time."""
    query, seen = {"uploads": "", "prefix": target.key, "max-uploads": str(_AT_ONCE)}, set[tuple[str, str]]()
    while True:
        page = _ask("GET", target.bucket, "", query, keys)
        for upload in _UPLOAD.findall(page):
            yield _text(upload, "Key"), _text(upload, "UploadId")
        # SeaweedFS goes on behind an id alone, and names no key.
        after = _text(page, "NextKeyMarker"), _text(page, "NextUploadIdMarker")
        if not _MORE.search(page) or after == ("", "") or after in seen:
            return
        seen.add(after)
        markers = zip(("key-marker", "upload-id-marker"), after, strict=True)
        query |= {name: marker for name, marker in markers if marker}


def _text(xml: str, name: str) -> str:
    """Return what the first element of a name holds; nothing where there is none."""
    found = re.search(f"<{name}>(.*?)</{name}>", xml, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def _find_keys() -> _Keys | None:
    """Return what signs: of the environment, or of boto3 where it is installed."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    key, secret, token = (os.environ.get(name, "") for name in names)
    if key and secret:
        return _Keys(key, secret, token, region)
    try:
        session = import_module("boto3").Session()
    except ImportError:
        return None
    found = session.get_credentials()
    if found is None:
        return None
    frozen = found.get_frozen_credentials()
    return _Keys(frozen.access_key, frozen.secret_key, frozen.token or "", session.region_name or region)


def _ask(method: str, bucket: str, key: str, query: dict[str, str], keys: _Keys) -> str:
    """Send a request that is signed as AWS's Signature Version 4 asks for, and return the answer.

    Raises:
        OSError: where the store refuses, or does not answer.
    """
    own = endpoint()
    server = own or f"https://{bucket}.s3.{keys.region}.amazonaws.com"
    path = urllib.parse.quote(f"/{bucket}/{key}" if own else f"/{key}", safe="/-_.~")
    words = "&".join(f"{_word(name)}={_word(value)}" for name, value in sorted(query.items()))
    url = urllib.parse.urlsplit(server)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": url.netloc, "x-amz-content-sha256": _EMPTY, "x-amz-date": now}
    if keys.token:
        headers["x-amz-security-token"] = keys.token
    signed = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    path = url.path.rstrip("/") + path
    request = f"{method}\n{path}\n{words}\n{lines}\n{signed}\n{_EMPTY}"
    scope = f"{now[:8]}/{keys.region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signer = f"AWS4{keys.secret}".encode()
    for part in (*scope.split("/"), text):
        signer = hmac.digest(signer, part.encode(), "sha256")
    credential = f"Credential={keys.key}/{scope}, SignedHeaders={signed}, Signature={signer.hex()}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}"
    del headers["host"]
    asked = urllib.request.Request(f"{url.scheme}://{url.netloc}{path}?{words}", headers=headers, method=method)

    def ask() -> bytes:
        try:
            with urllib.request.urlopen(asked, timeout=_SECONDS) as answer:
                return bytes(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            error.close()  # it is the answer, too
            raise

    return answered(ask).decode(errors="replace")


def _word(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")
