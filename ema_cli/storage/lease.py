"""A lease: a small file that its owner writes anew while it lives. If it stands still, the owner is gone.

Locks do not reach other machines on every file system, and their clocks differ. So nobody compares times of two
machines: a lease is old if its text stays the same for long, by the clock of the one who looks.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from ema_cli.errors import OutputError
from ema_cli.storage.output_stream import output_errors

LEASE_SECONDS = 60.0
"""A lease that stood still for so long is given up. Network file systems may show a new text only seconds later."""

_RENEWED_SHARE = 1 / 12  # of that time
_LOOK_SHARE = 1 / 60


class LeaseLost(OutputError):
    """The one for whom the work was done is gone, or somebody else took its place."""


class Held(OutputError):
    """A lease that somebody holds who lives."""


class Lease:
    """The lease of this process, renewed by a thread; a context manager. It is made only where none is.

    Raises:
        Held: where somebody who lives holds it.
        OutputError: where the file system refuses.
    """

    def __init__(self, path: Path, *, seconds: float = LEASE_SECONDS) -> None:
        self.path = path
        self.owner = os.urandom(8).hex()
        self._seconds = seconds
        self._count = 0
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        with output_errors(self.path):
            if not self._make():
                self._take_over()
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._renewing.ident is not None:
            self._renewing.join()
        with suppress(OSError):
            if owner_of(self.path) == self.owner:
                self.path.unlink()

    def is_ours(self) -> bool:
        """Return whether nobody took it over, as another one may if this process stood still for long."""
        try:
            return owner_of(self.path) == self.owner
        except OSError:
            return True  # as far as is known

    def _make(self) -> bool:
        """Make the file, and return whether none was there."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, self._text())
        except OSError:
            self.path.unlink()  # else the next run waits for its owner
            raise
        finally:
            os.close(descriptor)
        return True

    def _take_over(self) -> None:
        """Wait until it is clear that the owner is gone, and take its place.

        Raises:
            OutputError: where the owner lives.
        """
        watch = Watch(self.path, seconds=self._seconds)
        while watch.is_renewed_in_time() and not is_dead(held_by(watch.text)):
            if watch.was_renewed:
                raise Held(
                    "another run is making the same average here",
                    subject=self.path.parent.parent,
                    hint="wait for its end, or write elsewhere",
                )
            time.sleep(self._seconds * _LOOK_SHARE)
        aside = self.path.with_name(f"{self.path.name}-{self.owner}")
        with suppress(FileNotFoundError):  # its owner ended, or somebody else was faster
            self.path.rename(aside)
            if aside.read_bytes() != watch.text:  # who was faster has made its own, or the owner lives after all
                with suppress(OSError):
                    os.link(aside, self.path)
        with suppress(FileNotFoundError):
            aside.unlink()
        if not self._make():
            raise Held("another run has just begun to make the same average", subject=self.path.parent.parent)

    def _text(self) -> bytes:
        self._count += 1
        held = {"owner": self.owner, **this_process(), "count": self._count}
        return f"{json.dumps(held)}\n".encode()

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds * _RENEWED_SHARE):
            with suppress(OSError):  # tried again; who looks is patient
                if owner_of(self.path) != self.owner:
                    return  # taken away: who wanted that has said so
                fresh = self.path.with_name(f"{self.path.name}-{self.owner}")
                fresh.write_bytes(self._text())
                fresh.replace(self.path)


class Watch:
    """Looks whether a lease is renewed."""

    def __init__(self, path: Path, *, seconds: float = LEASE_SECONDS) -> None:
        self._path = path
        self._seconds = seconds
        self._text: bytes | None = None
        self._changes = -1
        self._since = time.monotonic()
        self._looked = float("-inf")

    @property
    def text(self) -> bytes:
        """Return what the lease said when it was last looked at."""
        return self._text or b""

    @property
    def was_renewed(self) -> bool:
        """Return whether it was, since the first look."""
        return self._changes > 0

    def is_renewed_in_time(self) -> bool:
        """Look, unless that was just done; return False where the lease is gone or stood still for too long.

        Raises:
            OSError: where the file system does not say.
        """
        now = time.monotonic()
        if now - self._looked < self._seconds * _LOOK_SHARE:
            return True
        self._looked = now
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return False
        if text != self._text:
            self._text, self._since, self._changes = text, now, self._changes + 1
        return now - self._since < self._seconds

    def check(self, owner: str) -> None:
        """Check that the one for whom this process works is there.

        Raises:
            LeaseLost: where it is not.
        """
        try:
            is_there = self.is_renewed_in_time()
        except OSError:
            return  # asked again at the next block; what is written there fails by itself
        held = held_by(self.text)
        if not is_there or held.get("owner", owner) != owner or is_dead(held):
            raise LeaseLost("the one for whom it was made is gone", subject=self._path.parent.parent)


def owner_of(path: Path) -> str | None:
    """Return who holds a lease; None where nobody does.

    Raises:
        OSError: where the file system does not say.
    """
    try:
        owner = held_by(path.read_bytes()).get("owner")
    except FileNotFoundError:
        return None
    return None if owner is None else str(owner)


def held_by(text: bytes) -> dict[str, object]:
    """Return what the text of a lease says; nothing where it is just being made."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def this_process() -> dict[str, object]:
    """Return what a lease says of its owner: on the same machine it tells at once that this one is no more."""
    return {"machine": this_machine(), "process": os.getpid()}


@cache
def this_machine() -> str:
    """Return what tells this machine, or this container, from others, as far as the numbers of processes go.

    Names are given twice, and the first namespace of processes has one number on all machines: so the start of the
    system counts, too. A digest, as a bucket may be public; empty where nothing tells.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return sha256(f"{os.uname().nodename} {start} {processes}".encode(errors="surrogateescape")).hexdigest()[:32]


def is_dead(held: Mapping[str, object]) -> bool:
    """Return whether the owner of a lease was a process of this machine, and is no more; or has said that it ended."""
    if held.get("ended") is True:
        return True
    process = held.get("process")
    if not this_machine() or held.get("machine") != this_machine() or not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
