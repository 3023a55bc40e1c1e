"""Whether requests to stores are signed: the same for all that one process reads, and for those who read for it."""

from __future__ import annotations

import sys

_anonymous = False


def read_anonymously(yes: bool = True) -> None:
    """Sign no request from now on, whatever credentials the environment has: what is read is public.

    A worker is told anew by each work that it opens: so nothing of it is in the environment, which others share.
    """
    global _anonymous
    if yes is not _anonymous:
        _anonymous = yes
        stores = sys.modules.get("ema_cli.storage.stores")  # which only those load who read from a store
        if stores is not None:
            stores.forget_clients()


def is_anonymous() -> bool:
    """Return whether no request is to be signed."""
    return _anonymous
