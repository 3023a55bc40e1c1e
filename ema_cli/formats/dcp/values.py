"""What an unpickled `.metadata` is made of: each value is what it has to be, or it is `Damaged`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from ema_cli.checkpoint import MAX_DIMENSIONS
from ema_cli.formats.boxes import Damaged, Shape
from ema_cli.formats.pickles.values import Inert

MAX_PATH = 256

State = Mapping[str, Any]
"""The attributes of an object in `.metadata`, as unpickled: names to anything."""


def state_of(value: object, fields: tuple[str, ...]) -> State:
    """Return the state of a placeholder for an object that carries at least these fields."""
    if not has_fields(value, fields):
        raise Damaged(f"a {kind_of(value)} stands where an object with {' and '.join(fields)} belongs")
    state: State = value.state
    return state


def has_fields(value: object, fields: tuple[str, ...]) -> TypeGuard[Inert]:
    """Return whether a value stands for an object that carries at least these fields."""
    return isinstance(value, Inert) and isinstance(value.state, dict) and all(name in value.state for name in fields)


def is_empty(value: object) -> bool:
    """Return whether a value stands for an object of which nothing is said."""
    return isinstance(value, Inert) and not (value.args or value.items or value.values or value.state)


def kind_of(value: object) -> str:
    """Return the class of a value, for a message."""
    return value.kind if isinstance(value, Inert) else type(value).__name__


def value_of(value: object, key: str) -> Any:
    """Return an entry of a dict; None where it has none, or is none."""
    return value.get(key) if isinstance(value, dict) else None


def dict_of(value: object) -> dict[Any, Any]:
    """Return a value that has to be a dict."""
    if not isinstance(value, dict):
        raise Damaged("it lists no tensors")
    return value


def list_of(value: object) -> list[Any]:
    """Return a value that has to be a list of pieces."""
    if not isinstance(value, list):
        raise Damaged("it has no list of pieces")
    return value


def shape_of(value: object) -> Shape:
    """Return a value that has to be a shape or an offset."""
    if isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(is_count, value)):
        return value
    raise Damaged("a shape or an offset in it is no tuple of counts")


def is_path(value: object) -> TypeGuard[tuple[str | int, ...]]:
    """Return whether a value is a place in the nested dict that was saved: its keys."""
    if not isinstance(value, tuple) or len(value) > MAX_PATH:
        return False
    return all(isinstance(part, str) or is_count(part) for part in value)


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value is a number of bytes, elements or items."""
    return type(value) is int and 0 <= value < 1 << 62


def are_counts(column: Sequence[Any]) -> bool:
    """Return whether all values of a column are counts."""
    return not column or ({*map(type, column)} == {int} and is_count(min(column)) and is_count(max(column)))


def distinct(column: Iterable[Any]) -> Collection[Any]:
    """Return each value of a column once: its objects, which may be equal."""
    return {id(value): value for value in column}.values()
