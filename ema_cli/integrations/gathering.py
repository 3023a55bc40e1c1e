"""Gather the sharded tensors of a state, for trainers that save from one process. Imports no trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ema_cli.online.sharded import is_sharded, whole
from ema_cli.online.state import StateDict


def gather(state: StateDict, *, keep: bool) -> StateDict:
    """Return a state with its sharded tensors gathered in the host's memory; all other values are unchanged.

    Every process must call it. Processes that do not `keep` the tensors get None in their place.
    """
    return {name: _gather(value, keep) for name, value in state.items()}


def _gather(value: Any, keep: bool) -> Any:
    if isinstance(value, Mapping):
        return gather(dict(value), keep=keep)
    if not isinstance(value, Tensor) or not is_sharded(value):
        return value
    tensor = whole(value)
    return tensor.cpu() if keep else None
