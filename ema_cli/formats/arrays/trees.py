"""Names of tensors in containers that know no model: what stands beside it is told from it by its place.

The tensors of a tree of dicts get the places in it as names, its keys joined by dots, as JAX's users write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.trainers.layouts import OTHERS, PLAIN
from ema_cli.formats.trainers.names import AVERAGES_KEY

_JOINT = re.compile("[./]")
_TF_SLOT, _TF_OUTPUT = "/.OPTIMIZER_SLOT/", ":0"  # in and after TensorFlow's names of variables
_CLOCKS = tuple(place for places in PLAIN.clocks.values() for place in places)
_PARAMS, _STATISTICS = "params", "batch_stats"  # the collections of Flax's that make a model
_MAX_DEPTH = 64
_DEPTH_OF_MODEL = 3


def set_apart(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays by their names, those of an optimizer, averages and the like in dicts of their own, by the model.

    `opt/0/mu` is `0/mu` of `opt` then. Where all names are such, they are the model.
    """
    beside = {name: place for name in arrays if (place := _optimizers_place(name, arrays)) is not None}
    beside.update(_averages_places([name for name in arrays if name not in beside]))
    if not beside or len(beside) == len(arrays):
        return dict(arrays)
    model = {name: value for name, value in arrays.items() if name not in beside}
    root: dict[str, Any] = {name: model[name] for name in _CLOCKS if name in model}
    for name, (top, rest) in beside.items():
        root.setdefault(top, {})[rest] = arrays[name]
    return {**root, "model": model}


def _optimizers_place(name: str, arrays: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what an array belongs to that is not the model's by its name, and its name there.

    An array below another one, `w/Adam` below `w`, is what TensorFlow's optimizers and averages keep of that.
    """
    if OTHERS.match(name) and _JOINT.search(name):
        top, rest = _JOINT.split(name, maxsplit=1)
        return top, rest
    if _TF_SLOT in name:
        return "optimizer", name
    around, _, last = name.removesuffix(_TF_OUTPUT).rpartition("/")
    above = next((above for above in (around, around + _TF_OUTPUT) if above in arrays), None)
    return None if above is None else (last, above)


def _averages_places(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return places, under the model's names, of arrays whose first key is called averages and goes on as the model."""
    below: dict[str, dict[str, str]] = {}
    for name in names:
        top, *rest = _JOINT.split(name, maxsplit=1)
        if rest:
            below.setdefault(top, {})[rest[0]] = name
    called = [top for top in below if AVERAGES_KEY.search(top)]
    apart = {name: name for name in names if _JOINT.split(name, maxsplit=1)[0] not in called}
    models = [apart, *(inner for top, inner in below.items() if top not in called)]
    places: dict[str, tuple[str, str]] = {}
    for top in called:
        raw = next((model for model in models if model.keys() == below[top].keys()), {})
        places.update({below[top][rest]: (top, name) for rest, name in raw.items()})
    return places


def model_in_tree(root: Any) -> Any:
    """Return a tree of nested dicts as one dict of the model, with clocks, and dicts of what stands beside it.

    The model is what lies under `params`, with `batch_stats.` before the names of those that lie beside them. Where
    there are none, it is what lies at another place for models, else all but what is an optimizer's and the like.

    Raises:
        CheckpointError: for a tree that is nested without end, or has two places of one name.
    """
    if not isinstance(root, dict):
        return root
    around, outside = _around_params(root)
    outside = {key: dict(_leaves(value, "")) for key, value in outside.items() if isinstance(value, dict)}
    top = {key: dict(_leaves(value, "")) if isinstance(value, dict) else value for key, value in around.items()}
    clocks = {name: root[name] for name in _CLOCKS if name in root and not isinstance(root[name], dict)}
    if isinstance(around.get(_PARAMS), dict):
        model = {**top.pop(_PARAMS), **_prefixed(_STATISTICS, top.pop(_STATISTICS, {}))}
        return {**outside, **clocks, **top, "model": model}
    if any(_holds_tensors(top.get(place)) for place in PLAIN.model):
        return {**clocks, **top}
    others = {key: value for key, value in top.items() if OTHERS.match(key) and isinstance(value, dict)}
    rest = {key: value for key, value in around.items() if key not in others}
    return {**clocks, **others, "model": dict(_leaves(rest, ""))} if others else dict(_leaves(rest, ""))


def _around_params(root: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the dict with the collections of a model, at the top or in the one place where one is, else `root`.

    With it comes what stands beside the way to it.
    """
    level: list[tuple[dict[str, Any], tuple[tuple[dict[str, Any], str], ...]]] = [(root, ())]
    for _ in range(_DEPTH_OF_MODEL):
        places = [(around, way) for around, way in level if isinstance(around.get(_PARAMS), dict)]
        if places:
            around, way = places[0] if len(places) == 1 else (root, ())
            steps = reversed(way)  # the outer names last, which hold
            return around, {name: value for outer, key in steps for name, value in outer.items() if name != key}
        level = [
            (inner, (*way, (around, key)))
            for around, way in level
            for key, inner in around.items()
            if isinstance(inner, dict) and not OTHERS.match(key)
        ]
    return root, {}


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
