"""Layers, as the names of tensors tell them: for tables that nobody could read tensor by tensor. No numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ema_cli.text import natural_key

_OUTER_PARTS = 2  # of a module's path without a number in it


def layer_of(name: str) -> str:
    """Return the layer of a tensor: the path of its module up to the last number in it, else its outer two parts."""
    path = _module(name)
    numbers = [at for at, part in enumerate(path) if _is_number(part)]
    return ".".join(path[: numbers[-1] + 1] if numbers else path[:_OUTER_PARTS])


def order_by_layer(names: Iterable[str], layer: Callable[[str], str] = layer_of) -> dict[str, str]:
    """Return the layer of each tensor, in the natural order of the layers and of the names in them."""
    found = [(layer(name), name) for name in names]
    return {name: part for part, name in sorted(found, key=lambda each: tuple(map(natural_key, each)))}


def group_layers(names: Iterable[str], most: int) -> tuple[dict[str, str], bool]:
    """Return the same with so many layers at most, and whether any had to be put together for that.

    The parts of numbered blocks (experts) are put together first, then neighbours.
    """
    names = list(names)
    for layer in (layer_of, _outer_layer):
        found = order_by_layer(names, layer)
        if len(set(found.values())) <= most:
            return found, layer is not layer_of
    labels = list(dict.fromkeys(found.values()))
    ranges: dict[str, str] = {}
    for number in range(most):
        part = labels[number * len(labels) // most : (number + 1) * len(labels) // most]
        ranges.update(dict.fromkeys(part, _range(part[0], part[-1])))
    return {name: ranges[label] for name, label in found.items()}, True


def _range(first: str, last: str) -> str:
    """Return the name of several layers, from the first to the last: what both begin with is said once."""
    if first == last:
        return first
    begin, end = first.split("."), last.split(".")
    shared = next((at for at, (one, other) in enumerate(zip(begin, end, strict=False)) if one != other), 0)
    return f"{first} to {'.'.join(end[shared:])}"


def _outer_layer(name: str) -> str:
    """Return the layer up to the first number."""
    path = _module(name)
    number = next((at for at, part in enumerate(path) if _is_number(part)), None)
    return ".".join(path[:_OUTER_PARTS] if number is None else path[: number + 1])


def _module(name: str) -> list[str]:
    """Return the parts of a tensor's name but the last, which is the tensor's own in its module."""
    parts = name.split(".")
    return parts[:-1] or parts


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()
