"""An identity for each start and each resume of a training, which all of its processes share."""

from __future__ import annotations

import itertools
import secrets

_made = itertools.count()


def new_identity() -> str:
    """Return 8 hexadecimal digits: the same ones in all processes that call it equally often, and never again.

    The processes agree without waiting for each other: the first to come says the identity, in the store by which they
    found each other. That store belongs to this one start of the processes.
    """
    from torch import distributed

    number, proposed = next(_made), secrets.token_hex(4)
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return proposed
    shared = distributed.distributed_c10d._get_default_store()
    agreed: bytes = shared.compare_set(f"ema_cli/identity/{number}", "", proposed)
    return agreed.decode()
