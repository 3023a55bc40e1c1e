"""Composer's EMA: it swaps its averages with the model's weights, and saves both in states of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ema_cli.checkpoint import AdapterSettings, Checkpoint, Pretrained
from ema_cli.errors import CheckpointError
from ema_cli.formats.trainers.composer_files import ComposerFiles, adapter_settings, find_base
from ema_cli.formats.trainers.layout import Sets, StateDict
from ema_cli.formats.trainers.nested import dig, text_key

EMA_WAS_ON = "Composer's EMA was on: 'state.model' holds averages"


def both_sets(tensors: StateDict, root: Mapping[Any, Any]) -> Sets | None:
    """Return the model's weights and those that Composer's EMA keeps in its own state; None where it was not there."""
    ema = next((state for name, state in _pairs(dig(root, "state/algorithms")) if name == "EMA"), None)
    store = ema.get("ema_model") if isinstance(ema, dict) else None
    if not isinstance(ema, dict) or not isinstance(store, dict):
        return None
    other = dict(tensors)
    for part in ("named_parameters_dict", "named_buffers_dict"):
        values = store.get(part)
        for name, value in values.items() if isinstance(values, dict) else ():
            # With several processes Composer keeps the names that DDP gives.
            bare = name if name in other else text_key(name).removeprefix("module.")
            if bare not in other:
                raise CheckpointError(f"Composer's EMA has '{bare}', which 'state.model' does not have")
            other[bare] = value
    if ema.get("ema_weights_active") is True:
        return Sets(other, tensors, why=EMA_WAS_ON)
    return Sets(tensors, other, where="state.algorithms")


def is_ema_on(algorithms: object) -> bool:
    """Return whether the states of Composer's algorithms, pairs of name and state, say that averages are swapped in."""
    for entry in algorithms if isinstance(algorithms, list) else [algorithms]:
        state = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else entry
        if isinstance(state, dict) and state.get("ema_weights_active") is True:
            return True
    return False


def add_inner_files(checkpoint: Checkpoint, root: Any, reopen: Callable[[], Any]) -> Checkpoint:
    """Return the checkpoint with the configuration and tokenizer that Composer keeps in it, if it does."""
    base = find_base(root, checkpoint.tensors.specs)
    if base is None:
        return checkpoint
    return replace(
        checkpoint,
        pretrained=Pretrained(base, inner_files=ComposerFiles(base, checkpoint.path, reopen)),
        adapter=AdapterSettings(adapter_settings(root)),
    )


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the (name, state) pairs of Composer's list of algorithms."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, list | tuple) and len(item) == 2:
            yield item[0], item[1]
