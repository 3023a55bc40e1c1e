"""Repositories of the Hugging Face Hub, read through huggingface_hub's own file system.

A revision is pinned to its commit when it is first looked at: a commit never changes. Buckets of the Hub have none; of
their files the identity is compared again at the end. huggingface_hub is an extra, `ema-cli[hub]`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, Missing, Unreadable, UsageError, option
from ema_cli.storage.names import StorePath
from ema_cli.storage.source import HINT_REWRITTEN
from ema_cli.storage.store.clients import without_queries

_TRIES = 3  # of a read whose body was cut; huggingface_hub itself tries again what the Hub refuses
_PAUSE_SECONDS = 0.5
_ANONYMOUS = "HF_HUB_DISABLE_IMPLICIT_TOKEN"
_YES = ("1", "true", "yes", "on")
_lock = threading.Lock()
_pinned: dict[str, str] = {}  # a revision, as org/model@main -> with its commit


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on the Hub: its name below the repository's owner, its size, what identifies it, and where it is read."""

    key: str
    size: int
    tag: str
    pinned: str


def forget_commits() -> None:
    """Look anew at all revisions from now on."""
    with _lock:
        _pinned.clear()


def hub_files(path: StorePath) -> Iterator[HubFile]:
    """Yield all files at an address and below it.

    Raises:
        Missing: where nothing is there.
        Unreadable: where the Hub does not say.
    """
    begin, text = path.bucket, f"{path.bucket}/{path.key}"
    with _hub_errors(path, "cannot be looked into"):
        hub = _hub(path)
        resolved = hub.resolve_path(text)
        inner = str(resolved.path_in_repo if hasattr(resolved, "path_in_repo") else resolved.path)
        root = text.removesuffix(inner).rstrip("/")
        pinned = _pin(hub, root, resolved)
        where = f"{pinned}/{inner}" if inner else pinned
        found = hub.find(where, detail=True, refresh=True)
        for name, facts in found.items():
            rest = name.removeprefix(pinned)
            tag = facts.get("blob_id") or facts.get("xet_hash")
            if not tag:
                raise ValueError(f"the Hub tells nothing that identifies {name}")
            yield HubFile(f"{root}{rest}".removeprefix(f"{begin}/"), int(facts["size"]), str(tag), name)


def read_from_hub(path: StorePath, pinned: str, begin: int, out: memoryview) -> None:
    """Fill `out` from byte `begin` of a file.

    Raises:
        CheckpointError: where it cannot be read, or is gone.
    """
    for number in range(_TRIES):
        with _hub_errors(path, f"cannot be read at byte {begin}"):
            end = begin + len(out)
            with _hub(path).open(pinned, "rb", cache_type="none", size=end) as file:
                data = file.cache.fetcher(begin, end) if out else b""
        if len(data) == len(out):
            out[:] = data
            return
        time.sleep(_PAUSE_SECONDS * number)
    raise Unreadable(f"cannot be read at byte {begin}: {len(data)} of {len(out)} bytes came", subject=path)


def check_same_on_hub(path: StorePath, pinned: str, tag: str) -> None:
    """Check that a file of a bucket is the one that was opened; one of a commit always is.

    Raises:
        CheckpointError: where it is not.
    """
    if not pinned.startswith("buckets/"):
        return
    try:
        with _hub_errors(path, "cannot be looked at"):
            facts = _hub(path).info(pinned, refresh=True)
    except Missing as error:
        raise Missing("disappeared while it was used", subject=path) from error
    if facts.get("xet_hash") != tag:
        raise CheckpointError("changed while it was used", subject=path, hint=HINT_REWRITTEN)


def _pin(hub: Any, root: str, resolved: Any) -> str:
    """Return a repository with the commit to which its revision leads now; a bucket as it is."""
    if not hasattr(resolved, "repo_id"):
        return root
    with _lock:
        if root not in _pinned:
            api = import_module("huggingface_hub").HfApi(endpoint=hub.endpoint, token=hub.token)
            facts = api.repo_info(resolved.repo_id, revision=resolved.revision, repo_type=resolved.repo_type)
            _pinned[root] = f"{root.partition('@')[0]}@{facts.sha}"
        return _pinned[root]


def _hub(path: StorePath) -> Any:
    anonymous = path.is_anonymous or os.environ.get(_ANONYMOUS, "").lower() in _YES
    try:
        return _file_system(os.environ.get("HF_ENDPOINT"), anonymous)
    except UsageError as error:
        error.about(path)
        raise


@cache
def _file_system(endpoint: str | None, anonymous: bool) -> Any:
    """Return the file system of the Hub at an endpoint."""
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise UsageError(
            f"an address of the Hub needs the package huggingface_hub ({error})",
            hint="install it: pip install 'ema-cli[hub]'",
        ) from error
    return hub.HfFileSystem(endpoint=endpoint, token=False if anonymous else None, skip_instance_cache=True)


@contextmanager
def _hub_errors(path: StorePath, what: str) -> Iterator[None]:
    """Turn an error of huggingface_hub's into one of ours about `path`, of which it says `what`.

    Raises:
        Missing: where there is no such file or repository.
        Unreadable: for everything else.
    """
    try:
        yield
    except (CheckpointError, UsageError):
        raise
    except FileNotFoundError as error:
        hint = "what is private is read with HF_TOKEN, or after `hf auth login`"
        raise Missing("does not exist", subject=path, hint=hint) from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 404:
            raise Missing("does not exist", subject=path) from error
        reason = f"the Hub answers {status}" if status else f"{type(error).__name__}: {error}".split("\n")[0]
        ways, anonymous = "HF_TOKEN, or `hf auth login`", option("anonymous", True)
        refused = f"it may be private or gated: {ways}; or public: {anonymous}"
        if path.is_anonymous:
            refused = f"it is not public: leave out {anonymous}; {ways}"
        hint_of_status = refused if status in (401, 403) else None
        raise Unreadable(f"{what}: {without_queries(reason)[:300]}", subject=path, hint=hint_of_status) from error
