"""Object stores, reached through obstore: one client for each bucket, and what an error of it means.

obstore is an extra, `ema-cli[cloud]`, and is loaded when an address is met. It tries again what a server answers with
429 or 5xx, what times out and what is cut short, and goes on where a body stopped.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any

from ema_cli.errors import Missing, OutputError, Unreadable, UsageError, option
from ema_cli.storage.names import HUB, WEB, StorePath

CONNECT, SILENCE, _WHOLE = timedelta(seconds=10), timedelta(seconds=30), timedelta(minutes=10)  # of one request
_RETRY = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})</Message>")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_UNSIGNED = "AWS_SKIP_SIGNATURE"
_SERVER = re.compile(r"https?://[^/\s]+(/\S*)?", re.IGNORECASE)
_WORDS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")
_WORD = re.compile("[!-~]*")
_QUERY = re.compile(r"\?[^\s)\"']*")
_ANSWERED_NO = ("401", "403")
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with boto3 installed",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    **dict.fromkeys(("az", "abfs", "abfss"), _AZURE),
}
_LACKING = "must be specified"  # what obstore says of a setting that it cannot do without
_WHOLE_ALONE = "Range request not supported"  # what obstore says where the answer to a range is the whole file
_NO_RANGES = "it sends no ranges of a file"
_NOT_REACHED = "error sending request"
_lock = threading.Lock()
_clients: dict[tuple[str, bool], Any] = {}  # by address, and whether they leave requests unsigned


@cache
def obstore() -> Any:
    """Return the package.

    Raises:
        UsageError: where it is not installed.
    """
    try:
        import_module("obstore.store")
        return import_module("obstore")
    except ImportError as error:
        raise UsageError(
            f"an address needs the package obstore ({error})", hint="install it: pip install 'ema-cli[cloud]'"
        ) from error


def check_package(path: StorePath) -> None:
    """Check that the package is installed that reads an address.

    Raises:
        UsageError: naming the address, where it is not.
    """
    try:
        obstore()
    except UsageError as error:
        error.about(path)
        raise


def client_of(path: StorePath) -> Any:
    """Return obstore's client of the bucket in an address; of a web server, of the one file.

    Raises:
        UsageError: where obstore is not installed, or a setting in the environment is not understood.
    """
    url = str(path) if path.scheme in WEB else f"{path.scheme}://{path.bucket}"
    url = f"{url}?{path.query}" if path.query else url
    unsigned = path.is_anonymous and path.scheme in _CREDENTIALS
    with _lock:
        if (url, unsigned) not in _clients:
            _clients[url, unsigned] = _make_client(path, url, unsigned=unsigned)
        return _clients[url, unsigned]


def _make_client(path: StorePath, url: str, *, unsigned: bool) -> Any:
    if path.scheme == "memory":
        return obstore().store.MemoryStore()
    if path.scheme == "s3":
        _check_settings(path)
    options: dict[str, object] = {
        # A store of one's own may be reached without TLS, where its address says so.
        "allow_http": True,
        "connect_timeout": CONNECT,
        "read_timeout": SILENCE,
        "timeout": _WHOLE,
    }
    more = {**_server(path), **_sums(path), **({"skip_signature": True} if unsigned else _provider(path))}
    with store_errors(path, "cannot be reached"):
        return obstore().store.from_url(url, client_options=options, retry_config=_RETRY, **more)


def endpoint() -> str:
    """Return the address of the S3 store that the environment names; empty for AWS's own."""
    return next((value for name in _ENDPOINTS if (value := os.environ.get(name))), "").rstrip("/")


def is_plain(path: StorePath) -> bool:
    """Return whether what lies here comes without TLS, and from the server itself."""
    if any(os.environ.get(name) for name in _PROXIES) or path.is_anonymous:
        return False
    if path.scheme == "s3" and os.environ.get(_UNSIGNED):  # to sign takes credentials, which may be asked for in vain
        return False
    return path.scheme == "http" or (path.scheme == "s3" and endpoint().lower().startswith("http://"))


def place_of(path: StorePath) -> str:
    """Return which of several stores with the same addresses is meant, as the environment says."""
    if path.scheme == HUB:
        return os.environ.get("HF_ENDPOINT", "")
    return endpoint() if path.scheme == "s3" else ""


def _server(path: StorePath) -> Mapping[str, Any]:
    """Return the setting that names the server: of several variables obstore takes another one, or an empty one."""
    return {"endpoint": endpoint()} if path.scheme == "s3" and endpoint() else {}


def _sums(path: StorePath) -> Mapping[str, str]:
    """Return the setting with which S3 gets a sum of each part, and refuses a part that has another.

    AWS's own tools leave sums out where the environment says so, for stores that know none.
    """
    is_wanted = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "").lower() != "when_required"
    return {"checksum_algorithm": "SHA256"} if path.scheme == "s3" and is_wanted else {}


def _check_settings(path: StorePath) -> None:
    """Check what the environment says of S3, at the rest of which obstore breaks off.

    Raises:
        UsageError: naming the variable, and not its value, which may be a secret.
    """
    for name in _ENDPOINTS:
        if not _SERVER.fullmatch(os.environ.get(name, "http://unset") or endpoint()):
            raise UsageError(f"{name} holds no address of a server", subject=path, hint=f"as {name}=http://host:port")
    for name in _WORDS:
        if not _WORD.fullmatch(os.environ.get(name, "")):
            raise UsageError(f"{name} holds a blank, a line break or a letter outside ASCII", subject=path)


def _provider(path: StorePath) -> Mapping[str, Any]:
    """Return what signs with a profile of AWS, where one is set: obstore itself reads no profiles."""
    if path.scheme != "s3" or not os.environ.get("AWS_PROFILE") or os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    try:
        boto3, auth = import_module("boto3"), import_module("obstore.auth.boto3")
    except ImportError as error:
        raise UsageError(
            f"a profile of AWS needs the package boto3 ({error})", subject=path, hint="install it: pip install boto3"
        ) from error
    try:
        session = boto3.Session()
        region = {"region": session.region_name} if session.region_name else {}
        return {"credential_provider": auth.Boto3CredentialProvider(session), **region}
    except Exception as error:
        raise UsageError(
            f"the profile of AWS in AWS_PROFILE cannot be used: {error}",
            subject=path,
            hint="`aws configure list-profiles` names those that there are",
        ) from error


def failures() -> tuple[type[Exception], ...]:
    """Return what obstore raises where a store does not do what it is asked for."""
    return (obstore().exceptions.BaseError, ValueError, FileNotFoundError)


@contextmanager
def store_errors(path: StorePath, what: str) -> Iterator[None]:
    """Turn an error of obstore's into one of ours about `path`, of which it says `what`.

    Raises:
        Missing: where there is no such object.
        Unreadable: for everything else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise Missing("does not exist", subject=path) from error
    except failures() as error:
        reason = reason_of(error)
        raise Unreadable(f"{what}: {reason}", subject=path, hint=_advice(path, reason)) from error


@contextmanager
def output_errors_in_store(path: StorePath) -> Iterator[None]:
    """Turn an error of obstore's into an OutputError about `path`."""
    try:
        yield
    except failures() as error:
        reason = reason_of(error)
        raise OutputError(f"cannot be written: {reason}", subject=path, hint=_advice(path, reason)) from error


def reason_of(error: Exception) -> str:
    """Return what a server or obstore says, without addresses: these may hold signatures."""
    text = str(error).split("\n\nDebug source")[0]
    status, message = _STATUS.search(text), _MESSAGE.search(text)
    if status is not None:
        return f"{status[1].strip()}: {without_queries(message[1])}" if message else status[1].strip()
    if _WHOLE_ALONE in text:
        return _NO_RANGES
    return without_queries(text.rpartition(" - ")[2].strip())[:300]


def without_queries(text: str) -> str:
    """Return a text in which no address has what follows the question mark: it may be a signature."""
    return _QUERY.sub("?...", text)


def _advice(path: StorePath, reason: str) -> str | None:
    if _NOT_REACHED in reason:
        where = f", and at {_ENDPOINTS[1]}, which names the server" if path.scheme == "s3" else ""
        return f"nobody answered: look at the network{where}"
    if reason == _NO_RANGES:
        return "copy what is there to a disk, and name that"
    known = _CREDENTIALS.get(path.scheme)
    if known is None or not (reason.startswith(_ANSWERED_NO) or _LACKING in reason):
        return None
    credentials, anonymous = f"credentials come from the environment: {known}", option("anonymous", True)
    if path.is_anonymous:
        return f"it is not public: leave out {anonymous}; {credentials}"
    return f"{credentials}; what is public is read with {anonymous}"
