"""Find the layers of a model by the names of its tensors. No numpy.

A table by tensor would have thousands of rows, one by layer can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ema_cli.text import natural_key

_OUTER_PARTS = 2  # of the path of a module without a number in it


def layer_of(name: str) -> str:
    """Return the layer of a tensor: the path of its module up to the last number in it, else its outer two parts.

    `model.layers.3.mlp.up_proj.weight` is in `model.layers.3`, `vision.tower.patch.proj.weight` in `vision.tower`.
    """
    path = _module(name)
    numbers = [position for position, part in enumerate(path) if _is_number(part)]
    return ".".join(path[: numbers[-1] + 1] if numbers else path[:_OUTER_PARTS])


def order_by_layer(names: Iterable[str], layer: Callable[[str], str] = layer_of) -> dict[str, str]:
    """Return the layer of each tensor, in the natural order of the layers and of the names in them."""
    pairs = [(layer(name), name) for name in names]
    return {name: part for part, name in sorted(pairs, key=lambda pair: tuple(map(natural_key, pair)))}


def group_layers(names: Iterable[str], most: int) -> tuple[dict[str, str], bool]:
    """Return the layer of each tensor as `order_by_layer`, merged to at most `most` layers; and whether they were.

    Parts of a numbered block, as experts, are merged first: `layers.3.experts.7` becomes `layers.3`. If that is not
    enough, neighbours are: `layers.0 to 1`.
    """
    names = list(names)
    for layer in (layer_of, _outer_layer):
        layers = order_by_layer(names, layer)
        if len(set(layers.values())) <= most:
            return layers, layer is not layer_of
    labels = list(dict.fromkeys(layers.values()))
    ranges: dict[str, str] = {}
    for number in range(most):
        part = labels[number * len(labels) // most : (number + 1) * len(labels) // most]
        ranges.update(dict.fromkeys(part, _range(part[0], part[-1])))
    return {name: ranges[label] for name, label in layers.items()}, True


def _range(first: str, last: str) -> str:
    """Return the name of the layers from the first to the last, with their common beginning once."""
    if first == last:
        return first
    begin, end = first.split("."), last.split(".")
    shared = next((at for at, (one, other) in enumerate(zip(begin, end, strict=False)) if one != other), 0)
    return f"{first} to {'.'.join(end[shared:])}"


def _outer_layer(name: str) -> str:
    """Return the layer of a tensor up to the first number."""
    path = _module(name)
    number = next((position for position, part in enumerate(path) if _is_number(part)), None)
    return ".".join(path[:_OUTER_PARTS] if number is None else path[: number + 1])


def _module(name: str) -> list[str]:
    """Return the path of a tensor's module: all parts of its name but the last."""
    parts = name.split(".")
    return parts[:-1] or parts


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()
