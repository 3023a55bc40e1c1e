"""A look at the claim under which one works for another process: whether that one still is there."""

from __future__ import annotations

import time

from ema_cli.errors import CheckpointError
from ema_cli.storage.lease import LEASE_SECONDS, LeaseLost, held_by, is_dead
from ema_cli.storage.names import StorePath
from ema_cli.storage.store.clients import store_errors
from ema_cli.storage.store.requests import content_of

_LOOK_SHARE = 1 / 6  # of the time after which a claim is old: many workers look at one object


class ClaimWatch:
    """Looks whether a claim is renewed, as `lease.Watch` does."""

    def __init__(self, path: StorePath, *, seconds: float = LEASE_SECONDS) -> None:
        self._path = path
        self._seconds = seconds
        self._seen: object = None
        self._since = self._looked = float("-inf")

    def check(self, owner: str) -> None:
        """Check that the one for whom this process works is there.

        Raises:
            LeaseLost: where it is not.
        """
        now = time.monotonic()
        if now - self._looked < self._seconds * _LOOK_SHARE:
            return
        self._looked = now
        try:
            with store_errors(self._path, "cannot be looked at"):
                meta, content = content_of(self._path)
                held, seen = held_by(content), (meta["last_modified"], meta["e_tag"])
        except FileNotFoundError:
            held, seen = {}, None
        except CheckpointError as error:
            if not _is_missing(error):
                self._since = now  # who renews it cannot reach the store either
                return  # asked again at the next block
            held, seen = {}, None
        if seen != self._seen:
            self._seen, self._since = seen, now
        if held.get("owner") != owner or now - self._since > self._seconds or is_dead(held):
            raise LeaseLost("the one for whom it was made is gone", subject=self._path)


def _is_missing(error: CheckpointError) -> bool:
    """Return whether an error says that nothing is there."""
    return isinstance(error.__cause__, FileNotFoundError)
