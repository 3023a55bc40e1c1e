"""States whose tensors are sharded, put together, for trainers that save them from one process. No trainer here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ema_cli.online.sharded import is_sharded, whole


def gather(state: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """Return a state with its sharded tensors put together, in the host's memory; all others as they are.

    Every process must call it. Those that do not `keep` the tensors get None in their places.
    """
    return {name: _gather(value, keep) for name, value in state.items()}


def _gather(value: Any, keep: bool) -> Any:
    if isinstance(value, Mapping):
        return gather(value, keep=keep)
    if not isinstance(value, Tensor) or not is_sharded(value):
        return value
    tensor = whole(value)
    return tensor.cpu() if keep else None
