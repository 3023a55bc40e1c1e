"""Tensors in a place that no layout knows: where they are, for the hint that names it and for `--key`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from ema_cli.checkpoint import MAX_NAME_CHARS
from ema_cli.errors import NoWeights, option
from ema_cli.formats.pickles.values import Inert, Refused, TensorRef
from ema_cli.formats.trainers.layout import StateDict
from ema_cli.formats.trainers.layouts import OTHERS
from ema_cli.formats.trainers.nested import as_state_dict, quoted

_T = TypeVar("_T")
_MAX_PLACES = 64
_FLAT = "flat_param.data"  # the one tensor of a rank in OLMo's local sharded checkpoints
_ARRAYS = ("numpy.", "jax.", "jaxlib.")  # the modules of arrays that are no tensors of torch's


def state_dicts_below(value: Any) -> Iterator[tuple[str, StateDict]]:
    """Yield each state dict in nested dicts and lists with its place, as `app.model`; not those of optimizers."""
    return _below(value, as_state_dict)


def _below(value: Any, wanted: Callable[[Any], _T | None]) -> Iterator[tuple[str, _T]]:
    """Yield with its place what is `wanted` in nested dicts and lists; nothing below that, or an optimizer's."""
    todo = [("", value)] if isinstance(value, dict | list | tuple) else []
    visited = set[int]()  # a hostile file may put a dict into itself, or many times into another
    while todo:
        around, outer = todo.pop()
        inner_items = []
        for key, inner in _items(outer):
            if not isinstance(key, str) or OTHERS.match(key) or id(inner) in visited:
                continue
            what = wanted(inner)
            if what is not None:
                yield f"{around}{key}", what
            elif isinstance(inner, dict | list | tuple) and len(around) < MAX_NAME_CHARS:
                visited.add(id(inner))
                inner_items.append((f"{around}{key[:MAX_NAME_CHARS]}.", inner))
        todo += reversed(inner_items)


def _items(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterable[tuple[Any, Any]]:
    """Return what a container holds by its keys; of a list the first few, by their numbers."""
    if isinstance(value, dict):
        return value.items()
    return ((str(number), item) for number, item in enumerate(value[:_MAX_PLACES]))


def joined_below(value: Any) -> StateDict:
    """Return the tensors of all state dicts in nested dicts, under one name each: `decoder.weight`."""
    return {
        f"{place}.{name}": tensor for place, tensors in state_dicts_below(value) for name, tensor in tensors.items()
    }


def no_weights(root: dict[Any, Any]) -> NoWeights:
    """Return the error for a file whose weights are in no place that is known; it says where there are tensors."""
    found = dict(islice(state_dicts_below(root), _MAX_PLACES))
    places = list(found)
    if any(_FLAT in tensors for tensors in found.values()):
        return NoWeights(
            f"holds what FSDP flattened of the parameters of one rank, at {quoted(places)}",
            hint="put the files of all ranks together first, with OLMo's scripts/unshard.py or what saved them so",
        )
    if places:
        around, *others = {place.rpartition(".")[0] for place in places}
        are_one = around and not others and len(places) > 1
        joined = f", or {option('key', around)} for all of them" if are_one else ""
        return NoWeights(
            f"no weights in a place we know; there are tensors at {quoted(places)}",
            hint=f"say which are the model's: {option('key', places[0])}{joined}",
        )
    arrays = next((name for name, value in root.items() if isinstance(name, str) and _holds_arrays(value)), None)
    if arrays is not None or _holds_arrays(root):
        where = "it" if arrays is None else f"'{arrays}'"
        return NoWeights(
            f"{where} holds arrays of another library, not tensors of torch's",
            hint="save them as tensors: torch.from_numpy(array)",
        )
    if "param_groups" in root or any(isinstance(name, str) and name.startswith("optim") for name in root):
        return NoWeights(f"the state of an optimizer, and no model's weights beside it; it holds {quoted(root)}")
    lists = [place for place, _ in islice(_below(root, _tensor_list), _MAX_PLACES)]
    if lists:
        return unnamed_tensors(f"at {quoted(lists)}")
    return NoWeights(f"no weights in a place we know, and no tensors in any other; it holds {quoted(root)}")


def unnamed_tensors(where: str) -> NoWeights:
    """Return the error for a file whose tensors are in a list."""
    return NoWeights(
        f"its tensors are in a list, {where}, and so have no names",
        hint="save model.state_dict() and average those files",
    )


def _tensor_list(value: Any) -> list[Any] | tuple[Any, ...] | None:
    return value if is_tensor_list(value) else None


def is_tensor_list(value: Any) -> bool:
    """Return whether the value is a list with a tensor in its first places."""
    is_list = isinstance(value, list | tuple)
    return is_list and any(isinstance(item, TensorRef | Refused) for item in value[:_MAX_PLACES])


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, dict) and any(
        isinstance(item, Inert) and item.kind.startswith(_ARRAYS) for item in value.values()
    )
