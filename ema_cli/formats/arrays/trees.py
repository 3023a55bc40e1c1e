"""Names of tensors in containers that know no model: what stands beside it is told from it by its place.

The tensors of a tree of dicts get the places in it as names, its keys joined by dots, as JAX's users write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.trainers.layouts import OTHERS, PLAIN

_JOINT = re.compile("[./]")
_CLOCKS = tuple(place for places in PLAIN.clocks.values() for place in places)
_PARAMS, _STATISTICS = "params", "batch_stats"  # the collections of Flax's that make a model
_MAX_DEPTH = 64
_DEPTH_OF_MODEL = 3


def set_apart(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays by their names, those of an optimizer and the like in dicts of their own, beside the model.

    `opt/0/mu` is `0/mu` of `opt` then. Where all names are such, they are the model.
    """
    others = [name for name in arrays if OTHERS.match(name) and _JOINT.search(name)]
    beside = frozenset(others)
    if not others or len(others) == len(arrays):
        return dict(arrays)
    model = {name: value for name, value in arrays.items() if name not in beside}
    root: dict[str, Any] = {name: model[name] for name in _CLOCKS if name in model}
    for name in others:
        top, rest = _JOINT.split(name, maxsplit=1)
        root.setdefault(top, {})[rest] = arrays[name]
    return {**root, "model": model}


def model_in_tree(root: Any) -> Any:
    """Return a tree of nested dicts as one dict of the model, with clocks, and dicts of what stands beside it.

    The model is what lies under `params`, with `batch_stats.` before the names of those that lie beside them. Where
    there are none, it is what lies at another place for models, else all but what is an optimizer's and the like.

    Raises:
        CheckpointError: for a tree that is nested without end, or has two places of one name.
    """
    if not isinstance(root, dict):
        return root
    around = _around_params(root)
    top = {key: dict(_leaves(value, "")) if isinstance(value, dict) else value for key, value in around.items()}
    clocks = {name: root[name] for name in _CLOCKS if name in root and not isinstance(root[name], dict)}
    if isinstance(around.get(_PARAMS), dict):
        model = {**top.pop(_PARAMS), **_prefixed(_STATISTICS, top.pop(_STATISTICS, {}))}
        return {**clocks, **top, "model": model}
    if any(_holds_tensors(top.get(place)) for place in PLAIN.model):
        return {**clocks, **top}
    others = {key: value for key, value in top.items() if OTHERS.match(key) and isinstance(value, dict)}
    rest = {key: value for key, value in around.items() if key not in others}
    return {**clocks, **others, "model": dict(_leaves(rest, ""))} if others else dict(_leaves(rest, ""))


def _around_params(root: dict[str, Any]) -> dict[str, Any]:
    """Return the dict with the collections of a model, at the top or in the one place where one is, else `root`."""
    level = [root]
    for _ in range(_DEPTH_OF_MODEL):
        found = [around for around in level if isinstance(around.get(_PARAMS), dict)]
        if found:
            return found[0] if len(found) == 1 else root
        level = [
            inner
            for around in level
            for key, inner in around.items()
            if isinstance(inner, dict) and not OTHERS.match(key)
        ]
    return root


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield what is no dict in a tree, by its place."""
    todo: list[tuple[str, Any, int]] = [(prefix, tree, 0)]
    seen = set[str]()
    while todo:
        place, value, depth = todo.pop()
        if isinstance(value, dict) and depth <= _MAX_DEPTH:
            joint = f"{place}." if place else ""
            todo += [(f"{joint}{key}", inner, depth + 1) for key, inner in reversed(value.items())]
            continue
        if isinstance(value, dict) or len(seen) > 4 * MAX_TENSORS:
            raise CheckpointError(f"its arrays are nested without end, as at '{place[:200]}'")
        if place in seen:
            raise CheckpointError(f"two arrays of it have the place '{place[:200]}'")
        seen.add(place)
        yield place, value


def _prefixed(prefix: str, values: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()} if isinstance(values, dict) else {}


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, TensorRef) for inner in value.values())
