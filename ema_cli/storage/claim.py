"""The claim on a place in a store: a small object beside it that keeps a second run out.

It is made only where it is not there, and renewed while its run lives. One that was not renewed for long is of a run
that died, and is taken over.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from ema_cli.errors import Missing, OutputError
from ema_cli.storage.listing import listing_of
from ema_cli.storage.names import StorePath
from ema_cli.storage.stores import client_of, obstore, output_errors_in_store

_LEASE = timedelta(minutes=10)  # clocks of machines and stores differ by less
_RENEWED_SECONDS = 60.0


def claim_path(target: StorePath) -> StorePath:
    """Return the address of the claim on a place, beside it."""
    return target.with_name(f".{target.name}.ema-cli-claim")


def claim_on(path: StorePath) -> StorePath | None:
    """Return the claim on a place in a store, or on the folder of several around it; None where there is none."""
    for place in (path, path.parent):
        with suppress(Missing):
            if place.key and listing_of(place).object(claim_path(place)) is not None:
                return claim_path(place)
    return None


class Claim:
    """The claim of this run on a place, as a context manager.

    Raises:
        OutputError: where another run holds it, or the store refuses.
    """

    def __init__(self, target: StorePath) -> None:
        self._target = target
        self._path = claim_path(target)
        self._content = json.dumps({"tool": "ema-cli", "owner": secrets.token_hex(8)}).encode()
        self._held: Any = None  # what tells the claim from another run's
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="claim", daemon=True)

    def __enter__(self) -> Claim:
        exceptions = obstore().exceptions
        with output_errors_in_store(self._path):
            try:
                self._held = self._put("create")
            except exceptions.AlreadyExistsError:
                self._held = self._take_over()
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OutputError), output_errors_in_store(self._path):
            if self.is_ours():
                obstore().delete(client_of(self._path), self._path.key)

    def check(self) -> None:
        """Raise an OutputError if another run took the claim, as it may where this one did not renew it for long."""
        with output_errors_in_store(self._path):
            if not self.is_ours():
                raise self._refusal("was lost to another run, because this one did not renew it for long")

    def _put(self, mode: Any) -> Any:
        return obstore().put(client_of(self._path), self._path.key, self._content, mode=mode, use_multipart=False)

    def _take_over(self) -> Any:
        """Take the claim of a run that died; this run's own, where the answer to the first request was lost."""
        try:
            held = obstore().head(client_of(self._path), self._path.key)
            age = datetime.now(UTC) - held["last_modified"]
            if age < _LEASE and not self.is_ours():
                raise self._refusal(f"is held by another run, which was alive {int(age.total_seconds())} s ago")
            return self._put(_version(held))
        except (FileNotFoundError, obstore().exceptions.PreconditionError) as error:
            raise self._refusal("is in use by another run") from error

    def _refusal(self, fact: str) -> OutputError:
        minutes = int(_LEASE.total_seconds() // 60)
        hint = f"wait for its end, or {minutes} minutes if it died; or write elsewhere"
        return OutputError(f"the claim on it {fact}", subject=self._target, hint=hint)

    def is_ours(self) -> bool:
        """Return whether the claim there is the one that this run made."""
        try:
            answer = obstore().get(client_of(self._path), self._path.key)
            return bytes(answer.bytes()) == self._content
        except FileNotFoundError:
            return False

    def _renew(self) -> None:
        """Put the claim anew again and again, as long as it is ours."""
        while not self._ended.wait(_RENEWED_SECONDS):
            with suppress(OutputError), output_errors_in_store(self._path):  # tried again; who publishes checks it
                self._held = self._put(_version(self._held))


def _version(held: Mapping[str, Any]) -> dict[str, str]:
    """Return what obstore takes for the condition that an object is still the one that it described."""
    return {name: held[name] for name in ("e_tag", "version") if held[name] is not None}
