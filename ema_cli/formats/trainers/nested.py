"""Find values in an unpickled object: nested dicts, lists and placeholders, in which anything may stand anywhere."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import Inert, Refused, TensorRef
from ema_cli.formats.pickles.whole_module import is_module, module_tensors
from ema_cli.formats.trainers.layout import StateDict

_SHOWN_NAMES, _SHOWN_CHARS = 8, 40
_MAX_DEPTH, _MAX_DICTS = 4, 1000
_MANY = 256  # entries of a dict that is looked at once
_known: ContextVar[dict[int, bool] | None] = ContextVar("known", default=None)
_INDEX = re.compile(r"-1|[0-9]{1,6}", re.ASCII)


def dig(value: Any, place: str) -> Any:
    """Return what `value` holds at a place such as `state/model` or `history/-1/step`; None where nothing is there."""
    for key in place.split("/"):
        value = item_of(value.state if isinstance(value, Inert) else value, key)  # an argparse.Namespace
    return value


def item_of(value: Any, key: str) -> Any:
    """Return what stands under a key of a dict, or at a place of a list: the first at `0`, the last at `-1`."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list | tuple) and _INDEX.fullmatch(key) and -len(value) <= int(key) < len(value):
        return value[int(key)]
    return None


def at_dots(value: Any, place: str, *, in_objects: bool = False) -> Any:
    """Return what stands at a place that a user names; dots descend unless they are part of a name.

    Args:
        value: what was unpickled.
        place: the place, as `trainer.step`.
        in_objects: whether placeholders of objects are descended into, as an argparse.Namespace is.
    """
    for key in steps_to(value, place, in_objects=in_objects):
        value = value.state if in_objects and isinstance(value, Inert) else value
        value = item_of(value, key)
    return value


def steps_to(value: Any, place: str, *, in_objects: bool = False) -> list[str]:
    """Return the keys that lead to a place that a user names, in which dots descend unless they are part of a name."""
    steps: list[str] = []
    rest = place
    while rest:
        value = value.state if in_objects and isinstance(value, Inert) else value
        if isinstance(value, dict) and rest in value:
            return [*steps, rest]
        head, _, rest = rest.partition(".")
        value = item_of(value, head)
        steps.append(head)
    return steps


def dicts_around(root: Mapping[Any, Any], place: str) -> list[tuple[str, Mapping[Any, Any], str]]:
    """Return the dicts on the way to a place, the innermost first: where each is, it, and the key that leads on.

    Where a dict is, is text that a message puts before a key: `trainer.` or nothing.
    """
    keys = place.split("/")
    way: list[tuple[str, Mapping[Any, Any], str]] = []
    for number, key in enumerate(keys):
        around = dig(root, "/".join(keys[:number])) if number else root
        around = around.state if isinstance(around, Inert) else around
        if isinstance(around, Mapping):
            way.append(("".join(f"{outer}." for outer in keys[:number]), around, key))
    return way[::-1]


def dicts_in(root: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield a dict and those below it that hold no tensors themselves, each with what comes before the places in it."""
    todo: deque[tuple[str, Mapping[Any, Any]]] = deque([("", root)])
    visited, count = {id(root)}, 1
    while todo:
        prefix, around = todo.popleft()
        yield prefix, around
        for key, inner in around.items() if prefix.count("/") < _MAX_DEPTH else ():
            inner = inner.state if isinstance(inner, Inert) else inner
            is_place = isinstance(key, str) and "/" not in key and isinstance(inner, dict)
            if not is_place or id(inner) in visited or count >= _MAX_DICTS:
                continue
            visited.add(id(inner))
            if not is_state_dict(inner):
                count += 1
                todo.append((f"{prefix}{key}/", inner))


def once(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield pairs of a key and a value, of a value that many keys lead to the first.

    A hostile file may have many keys lead to one dict that has as many.
    """
    seen = set[int]()
    for key, value in items:
        if id(value) not in seen:
            seen.add(id(value))
            yield key, value


def has(root: dict[Any, Any], place: str) -> bool:
    """Return whether something is at the place, be it None."""
    head, _, last = place.rpartition("/")
    around = dig(root, head) if head else root
    return isinstance(around, dict) and last in around


def state_dict_at(root: dict[Any, Any], place: str) -> StateDict | None:
    """Return the state dict at the place, None where there is none."""
    return as_state_dict(dig(root, place))


def as_state_dict(value: Any) -> StateDict | None:
    """Return a state dict, or that of a whole module; None for anything else."""
    if is_module(value):
        return module_tensors(value)
    return value if is_state_dict(value) else None


def is_state_dict(value: Any) -> bool:
    """Return whether the value is a dict with a tensor in it."""
    if not isinstance(value, dict):
        return False
    known = _known.get()
    if known is None or len(value) < _MANY:
        return _has_tensor(value)
    if id(value) not in known:
        known[id(value)] = _has_tensor(value)
    return known[id(value)]


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Remember, in the block, which large dicts hold tensors: a hostile file may have many keys lead to one.

    What was unpickled has to stay as it is, and to be held by somebody.
    """
    before = _known.set({})
    try:
        yield
    finally:
        _known.reset(before)


def _has_tensor(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, TensorRef | Refused) for item in value.values())


def holds_tensors(value: object) -> bool:
    """Return whether a tensor, or what may hold one, stands anywhere in a dict or a list."""
    todo, visited = [value], set[int]()
    while todo:
        item = todo.pop()
        if isinstance(item, dict | list | tuple):
            # A hostile file may put a container into itself, or many times into another.
            if id(item) not in visited:
                visited.add(id(item))
                todo += item.values() if isinstance(item, dict) else item
        elif isinstance(item, TensorRef | Refused | Inert):
            return True
    return False


def text_key(key: object) -> str:
    """Return the key if it can be the name of a tensor.

    Raises:
        CheckpointError: where it is no text.
    """
    if not isinstance(key, str):
        raise CheckpointError(f"a tensor has a key of type {type(key).__name__}, which is not a name")
    return key


def quoted(names: Iterable[Any]) -> str:
    """Return the first few names for a message. A key may be anything, a number of thousands of digits too."""
    texts = [name for name in names if isinstance(name, str)]
    return ", ".join(f"'{name[:_SHOWN_CHARS]}'" for name in texts[:_SHOWN_NAMES]) or "no names"
