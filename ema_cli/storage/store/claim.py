"""The claim on a place in a store: a small object beside it that keeps a second run out.

It is made only where it is not there, and renewed while its run lives. One that missed three renewals is of a run that
died, and is taken over; so is that of a process of this machine that is no more, and one that says that its run ended
before it had replaced what was there. It says what its run puts there: so the next one can tell what is left.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import Missing, OutputError
from ema_cli.storage.lease import LEASE_SECONDS, held_by, is_dead, this_process
from ema_cli.storage.names import StorePath
from ema_cli.storage.store.clients import obstore, output_errors_in_store, place_of
from ema_cli.storage.store.listing import listing_of
from ema_cli.storage.store.requests import content_of, look_at, put, remove

_SUFFIX = ".ema-cli-claim"
_TIME = "-time"  # what follows in the name of the object by which the store tells the time
_LEASE = timedelta(seconds=LEASE_SECONDS)
_RENEWED_SECONDS = LEASE_SECONDS / 3
_heeding: set[tuple[str, StorePath]] = set()  # buckets that heed conditions


def claim_path(target: StorePath) -> StorePath:
    """Return the address of the claim on a place, beside it."""
    return target.with_name(f".{target.name}{_SUFFIX}")


def is_claim(path: StorePath) -> bool:
    """Return whether an object has the name of a claim, or of what tells the time for one."""
    return path.name.startswith(".") and path.name.removesuffix(_TIME).endswith(_SUFFIX)


def claim_on(path: StorePath) -> StorePath | None:
    """Return the claim on a place in a store, or on the folder of several around it; None where there is none."""
    for place in (path, path.parent):
        with suppress(Missing):
            if place.key and listing_of(place).object(claim_path(place)) is not None:
                return claim_path(place)
    return None


@dataclass(frozen=True, slots=True)
class Died:
    """A run that died while it wrote to a place: the objects that it had put, or withdrawn what made them a release."""

    puts: frozenset[StorePath]


def held_claim_on(path: StorePath) -> StorePath | None:
    """Return the claim on a place, as `claim_on` does, unless its run died.

    Raises:
        OutputError: where the store does not say.
    """
    found = claim_on(path)
    return found if found is not None and _said_by_the_dead(found) is None else None


def died_at(target: StorePath) -> Died | None:
    """Return what a run that died has said of a place; None where none did, or its release is whole.

    Raises:
        OutputError: where the store does not say.
    """
    said = _said_by_the_dead(claim_path(target))
    return None if said is None else _left(target, said)


def _said_by_the_dead(path: StorePath) -> Mapping[str, object] | None:
    """Return what a claim says whose run died; None where its run may live, or no claim is there.

    By the clock of this machine: who takes a claim asks the store for the time.
    """
    with output_errors_in_store(path):
        try:
            held, content = content_of(path)
        except FileNotFoundError:
            return None
    said = held_by(content)
    return said if datetime.now(UTC) - held["last_modified"] >= _LEASE or is_dead(said) else None


def _left(target: StorePath, said: Mapping[str, object]) -> Died | None:
    """Return what a run that died has left at a place; None where its release is whole."""
    puts, last = (_own(target, said, name) for name in ("puts", "last"))
    there = listing_of(target).below
    return None if any(there(one) for one in last) else Died(frozenset(puts))


def _own(target: StorePath, said: Mapping[str, object], name: str) -> list[StorePath]:
    """Return the addresses that a claim lists: only those that a run to its place may put."""
    keys = said.get(name)
    begins = (f"{target.key}/", f"{target.key}.")
    listed = keys if isinstance(keys, list) else []
    own = [key for key in listed if isinstance(key, str) and (key == target.key or key.startswith(begins))]
    return [target.whole_bucket / key for key in own if ".." not in key.split("/")]


class Claim:
    """The claim of this run on a place, as a context manager.

    Raises:
        OutputError: where another run holds it, or the store refuses.
    """

    def __init__(self, target: StorePath) -> None:
        self._target = target
        self._path = claim_path(target)
        self.owner = secrets.token_hex(8)
        self._said: dict[str, object] = {"tool": "ema-cli", "owner": self.owner, **this_process()}
        self._content = json.dumps(self._said).encode()
        self._held: Any = None  # what tells the claim from another run's
        self._lock = threading.Lock()
        self.died: Died | None = None  # the run whose claim was taken over
        self.is_heeded = True  # by the store: else a second run is not kept out
        self.is_unfinished = False  # what this run began to replace: then the claim stays, and says that its run ended
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="claim", daemon=True)

    def __enter__(self) -> Claim:
        exceptions = obstore().exceptions
        with output_errors_in_store(self._path):
            try:
                self._held = self._put("create")
            except exceptions.AlreadyExistsError:
                self._held = self._take_over()
            else:
                self.is_heeded = self._is_heeded()
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OutputError), output_errors_in_store(self._path):
            if not self.is_ours():
                return
            if self.is_unfinished:
                self._content = json.dumps({**self._said, "ended": True}).encode()
                with suppress(obstore().exceptions.PreconditionError), self._lock:
                    self._put(_version(self._held))
            else:
                remove(self._path)
                # Of a run that was killed while it looked how old our claim is.
                with suppress(FileNotFoundError):
                    remove(self._clock)

    @property
    def path(self) -> StorePath:
        """Return the address of the claim."""
        return self._path

    @property
    def _clock(self) -> StorePath:
        """Return the address of the object that tells the time: one for all runs, so that a killed one leaves one."""
        return self._path.with_name(self._path.name + _TIME)

    def check(self) -> None:
        """Raise an OutputError if another run took the claim, as it may where this one did not renew it for long."""
        with output_errors_in_store(self._path):
            if not self.is_ours():
                raise self._refusal("was lost to another run, because this one did not renew it for long")

    def say(self, puts: Iterable[StorePath], last: Iterable[StorePath]) -> None:
        """Say what this run puts, and which of that comes last, for whoever comes after its death.

        Raises:
            OutputError: where another run took the claim.
        """
        self.check()
        with self._lock, output_errors_in_store(self._path):
            self._said |= {"puts": [path.key for path in puts], "last": [path.key for path in last]}
            self._content = json.dumps(self._said).encode()
            try:
                self._held = self._put(_version(self._held))
            except obstore().exceptions.PreconditionError as error:
                if not self.is_ours():  # else the answer to an earlier request was lost
                    raise self._refusal("was lost to another run") from error

    def _put(self, mode: Any) -> Any:
        return put(self._path, self._content, mode)

    def _is_heeded(self) -> bool:
        """Return whether the store refuses to make the claim once more, as one that heeds conditions does.

        It is not tried again of a bucket that did: `watch` makes two claims for each checkpoint.
        """
        bucket = place_of(self._path), self._path.whole_bucket
        if bucket not in _heeding:
            try:
                self._held = self._put("create")
            except obstore().exceptions.AlreadyExistsError:
                _heeding.add(bucket)
        return bucket in _heeding

    def _take_over(self) -> Any:
        """Take the claim of a run that died; this run's own, where the answer to the first request was lost."""
        try:
            held, content = content_of(self._path)
            said, died = held_by(content), None
            if content != self._content:
                age = self._time_of_store() - held["last_modified"]
                if age < _LEASE and not is_dead(said):
                    seconds = max(0, int(age.total_seconds()))
                    fact = f"is held by another run, which was alive {seconds} s ago"
                    raise self._refusal(fact, int(LEASE_SECONDS) + 1 - seconds)
                died = _left(self._target, said)
            taken = self._put(_version(held))
            self.died = died
            return taken
        except (FileNotFoundError, obstore().exceptions.PreconditionError) as error:
            raise self._refusal("is in use by another run") from error

    def _time_of_store(self) -> datetime:
        """Return the time by the clock that dates the claim: a small object is put, looked at and removed."""
        put(self._clock, b"")
        try:
            now: datetime = look_at(self._clock)["last_modified"]
        finally:
            remove(self._clock)
        return now

    def _refusal(self, fact: str, seconds: int = int(LEASE_SECONDS)) -> OutputError:
        hint = f"wait for its end; if it died, this works in {seconds} s; or write elsewhere"
        return OutputError(f"the claim on it {fact}", subject=self._target, hint=hint)

    def is_ours(self) -> bool:
        """Return whether the claim there is the one that this run made."""
        try:
            return content_of(self._path)[1] == self._content
        except FileNotFoundError:
            return False

    def is_lost(self) -> bool:
        """Return whether this run had the claim, and another one has it now."""
        return self._held is not None and not self.is_ours()

    def _renew(self) -> None:
        """Put the claim anew again and again, as long as it is ours."""
        while not self._ended.wait(_RENEWED_SECONDS):
            # tried again; who publishes checks it
            with suppress(OutputError), self._lock, output_errors_in_store(self._path):
                self._renew_once()

    def _renew_once(self) -> None:
        try:
            self._held = self._put(_version(self._held))
        except obstore().exceptions.PreconditionError:
            # Another run has it; or the answer to an earlier request was lost, and it is ours, as another version.
            held, content = content_of(self._path)
            if content == self._content:
                self._held = self._put(_version(held))


def _version(held: Mapping[str, Any]) -> dict[str, str]:
    """Return what obstore takes for the condition that an object is still the one that it described."""
    return {name: held[name] for name in ("e_tag", "version") if held[name] is not None}
