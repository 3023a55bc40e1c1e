"""A small Hugging Face Hub on loopback: repositories with revisions, and buckets, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.storage.loopback import Answer, Handler, serving

_REPOSITORY = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.*)")
_BUCKET = re.compile(r"/api/buckets/([^/]+/[^/]+)(?:/(tree)(?:/(.*))?)?")
_BUCKET_FILE = re.compile(r"/buckets/([^/]+/[^/]+)/resolve/(.*)")

Files = dict[str, bytes]


@dataclass(slots=True)
class Hub:
    """What the Hub has, and what it was asked.

    Attributes:
        commits: the files of each commit.
        revisions: the commit of each revision, by repository.
        buckets: the files of each bucket.
        fault: the status that is answered instead, or `cut` for half of the bytes; None for what is right.
        requests: method and path of each request; with the token, where one came.
    """

    commits: dict[str, Files] = field(default_factory=dict)
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    buckets: dict[str, Files] = field(default_factory=dict)
    fault: Callable[[str], str | None] = lambda path: None
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def commit(self, repository: str, files: Files, revision: str = "main") -> str:
        """Let a revision be a new commit with some files, and return the commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions.setdefault(repository, {})[revision] = commit
        return commit

    def find(self, repository: str, revision: str) -> tuple[str, Files] | None:
        """Return the commit and the files of a revision."""
        known = self.revisions.get(repository, {})
        commit = known.get(revision, revision if revision in self.commits else "")
        return (commit, self.commits[commit]) if commit else None


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _tree(files: Files, inner: str, fact: str) -> list[dict[str, Any]] | None:
    """Return what lies below a folder, as the Hub lists it; None where there is no such folder."""
    begin = f"{inner}/" if inner else ""
    below = {name: data for name, data in files.items() if name.startswith(begin)}
    if not below:
        return None
    folders = {name.rpartition("/")[0] for name in below if "/" in name.removeprefix(begin)}
    listed = [{"type": "directory", "path": name, "oid": _digest(name.encode()), "size": 0} for name in sorted(folders)]
    return listed + [
        {"type": "file", "path": name, "size": len(data), fact: _digest(data)} for name, data in sorted(below.items())
    ]


class _Handler(Handler):
    hub: Hub

    def handle_any(self) -> None:
        """Answer a request."""
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        self.body()
        hub.requests.append((self.command, path, self.headers.get("Authorization", "")))
        fault = hub.fault(path)
        if fault is not None and fault.isdigit():
            self._send(int(fault), b"this is a test")
        elif found := _REPOSITORY.fullmatch(path):
            self._repository(*found.groups())
        elif found := _BUCKET.fullmatch(path):
            self._bucket(*found.groups())
        elif found := _BUCKET_FILE.fullmatch(path):
            self._file(hub.buckets.get(found[1]), found[2], fault)
        elif found := _FILE.fullmatch(path):
            files = hub.find(found[1], found[2])
            self._file(files[1] if files else None, found[3], fault)
        else:
            self._send(404, b"")

    def _repository(self, name: str, what: str | None, revision: str | None, inner: str | None) -> None:
        if name not in self.hub.revisions:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        found = self.hub.find(name, revision or "main")
        if found is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if what == "tree":
            return self._listed(_tree(found[1], inner or "", "oid"))
        return self._json({"id": name, "sha": found[0], "siblings": [], "tags": [], "private": False})

    def _bucket(self, name: str, what: str | None, inner: str | None) -> None:
        files = self.hub.buckets.get(name)
        if files is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if what == "tree":
            return self._listed(_tree(files, inner or "", "xetHash"))
        return self._json({"id": name, "private": False, "createdAt": "2026-01-01T00:00:00.000Z", "size": 0,
                           "totalFiles": len(files)})  # fmt: skip

    def _listed(self, listed: list[dict[str, Any]] | None) -> None:
        if listed is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._json(listed)

    def _file(self, files: Files | None, name: str, fault: str | None) -> None:
        if files is None or name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data, wanted = files[name], re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, data)
        part = data[int(wanted[1]) : int(wanted[2]) + 1]
        return self._send(206, part[: len(part) // 2] if fault == "cut" else part)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.give(Answer(status, body, headers or {}))


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Yield a Hub that has nothing yet."""
    hub = Hub()
    with serving(_Handler, hub=hub) as hub.address:
        yield hub
