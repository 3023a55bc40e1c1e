"""Names of tensors in containers that know no model: what stands beside it is told from it by its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ema_cli.formats.trainers.layouts import OTHERS, PLAIN

_JOINT = re.compile("[./]")
_CLOCKS = tuple(place for places in PLAIN.clocks.values() for place in places)


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
