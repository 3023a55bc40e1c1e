"""Averages that objects keep: callbacks, averagers and optimizers, whose states lie in what a trainer pickled.

Whether they were in use when the model was saved, the bytes say: the model's equal them then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.trainers.layout import Sets, StateDict, Unpickled
from ema_cli.formats.trainers.matching import Refs, by_names, by_order
from ema_cli.formats.trainers.names import AVERAGED_COUNT, AVERAGES_KEY
from ema_cli.formats.trainers.nested import dicts_around, is_state_dict, once

Count = Callable[[object], int | float | None]
"""Returns the number that a counter of updates has, None for what is none."""

# Under which averagers count their updates, beside the averages.
_COUNTERS = (AVERAGED_COUNT, "num_updates", "updates")
# Where objects keep the raw weights while their averages are in the model.
STORED = ("collected_params", "temp_stored_params", "original_state_dict", "backup")
_OWN_STATE = {"averages", "copied", "laws", "began", "previous"}  # in what EMA.state_dict returns
SCHEDULE_FREE_EVAL = "its schedule-free optimizer was in eval mode, in which the model holds the optimizer's average"
SCHEDULE_FREE_TRAIN = (
    "its schedule-free optimizer was in train mode: these are the points where gradients are taken, not the "
    "optimizer's averages, which the model holds after optimizer.eval()"
)
_MAX_DEPTH, _MAX_VISITS = 6, 2000
_SAMPLE_BYTES = 1 << 12


def schedule_free(root: Mapping[Any, Any], place: str, tensors: StateDict) -> Sets | None:
    """Return what a schedule-free optimizer's state beside the model says: in eval mode the model is its average."""
    was_trained = trained_schedule_free(
        state for _, around, _ in dicts_around(root, place) for state in optimizers(around)
    )
    if was_trained is None:
        return None
    return Sets(tensors, warning=SCHEDULE_FREE_TRAIN) if was_trained else Sets(averages=tensors, why=SCHEDULE_FREE_EVAL)


def trained_schedule_free(states: Iterable[Mapping[Any, Any]]) -> bool | None:
    """Return whether a schedule-free optimizer was in train mode; None where there is none, or it has not begun."""
    for state in states:
        groups = state.get("param_groups")
        group = groups[0] if isinstance(groups, list) and groups else None
        if not isinstance(group, dict) or "weight_sum" not in group or "k" not in group:
            continue
        mode = group.get("train_mode")
        if mode is True or (mode is False and group["k"]):
            return mode
    return None


def optimizers(root: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    """Yield the states of optimizers in a dict, or in a list or dict there."""
    for _, value in once(root.items()):
        inner = value.values() if isinstance(value, dict) and "param_groups" not in value else ()
        for state in (*(value if isinstance(value, list | tuple) else (value,)), *inner):
            if isinstance(state, dict) and "param_groups" in state:
                yield state


def own_state(root: Mapping[Any, Any], tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return both sets where the state of an EMA of ours lies at the top, or one level down, as in callbacks.

    Of several averages it is the first, as in the evaluations of our callbacks.
    """
    below = [(f"{at}.{name}", value) for at, around in once(root.items()) if isinstance(around, dict)
             for name, value in around.items()]  # fmt: skip
    for where, value in ((str(at), value) for at, value in (*root.items(), *below)):
        averages = value.get("averages") if isinstance(value, dict) and value.keys() >= _OWN_STATE else None
        if not isinstance(averages, dict) or not averages:
            continue
        name, first = next(iter(averages.items()))
        copied = value["copied"]
        both = {**first, **copied} if isinstance(first, dict) and isinstance(copied, dict) else None
        matched = by_names(both, tensors) if both else None
        if matched is not None:
            return kept_sets(matched, value, tensors, f"{where}.averages.{name}", file, compare=False)
    return None


def hidden(root: Mapping[Any, Any], place: str, tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return both sets where a callback or an optimizer keeps averages, or while they are in use the raw weights.

    Whether the averages were in use when the model was saved, their bytes say: they equal the model's then.
    """
    for where, around, averages in _kept(root, place):
        matched = match_one(averages, tensors)
        if matched is not None:
            return kept_sets(matched, around, tensors, where, file)
        if stored_raw(around) is not None:
            return Sets(averages=tensors, why=_doubt(where), sure=False)
    return None


def _doubt(where: str) -> str:
    return f"'{where}' holds averages and weights that were stored while those took the model's place"


def kept_sets(
    matched: Refs, around: Any, tensors: StateDict, where: str, file: Unpickled, *, compare: bool = True
) -> Sets:
    """Return both sets, of which one is in the place of the model and the other is kept elsewhere.

    Args:
        matched: the averages, under the names of the model.
        around: the dict in which they are kept, with what is counted and stored beside them.
        tensors: what is in the place of the model.
        where: the place of the averages.
        file: reads numbers and the beginnings of tensors.
        compare: whether the averages may have been in the place of the model, too.
    """
    begun, stored = has_begun(around, counter(file)), stored_raw(around)
    equal = _equal(matched, tensors, file) if compare and begun else False
    if equal is None and stored:
        return Sets(averages=tensors, why=_doubt(where), sure=False)
    if not equal:
        return Sets(tensors, {**tensors, **matched}, where=where, begun=begun)
    raw = match_one(stored, tensors) if stored else None
    why = f"its weights equal the averages that it keeps in '{where}'"
    return Sets({**tensors, **raw} if raw else None, tensors, why=why, equal=not raw)


def stored_raw(around: Any) -> Any:
    """Return the raw weights that an object stored while its averages were in the model; None if it stored none."""
    values = [around.get(name) for name in STORED] if isinstance(around, dict) else []
    return next((value for value in values if isinstance(value, list | tuple | dict) and value), None)


def match_one(values: Any, tensors: StateDict) -> Refs | None:
    return by_order(values, tensors) if isinstance(values, list | tuple) else by_names(values, tensors)


def _kept(root: Mapping[Any, Any], place: str) -> Iterator[tuple[str, Mapping[Any, Any], Any]]:
    """Yield tensors that are called averages, below the top: their place, the dict around them and the tensors."""
    todo: deque[tuple[str, Any, int]] = deque(
        (f"{prefix}{name}", value, 1)
        for prefix, around, own in dicts_around(root, place)
        for name, value in around.items()
        if name != own
    )
    visited = set[int]()
    lists: dict[int, bool] = {}
    for _ in range(_MAX_VISITS):
        if not todo:
            return
        where, value, depth = todo.popleft()
        value = value.state if isinstance(value, Inert) else value
        if not isinstance(value, dict | list | tuple) or id(value) in visited:
            continue
        visited.add(id(value))
        if not isinstance(value, dict):
            if depth < _MAX_DEPTH:
                todo.extend((f"{where}.{at}", item, depth + 1) for at, item in enumerate(value[:_MAX_DEPTH]))
            continue
        for name, item in value.items():
            if isinstance(item, list | tuple) and id(item) not in lists:
                lists[id(item)] = any(isinstance(inner, TensorRef) for inner in item)
            is_list = lists.get(id(item), False)
            if AVERAGES_KEY.search(str(name)) and (is_list or is_state_dict(item)):
                yield f"{where}.{name}", value, item
            if depth < _MAX_DEPTH and name not in ("state", "param_groups") and not is_list:
                todo.append((f"{where}.{name}", item, depth + 1))


def _equal(matched: Refs, tensors: StateDict, file: Unpickled) -> bool | None:
    """Return whether the tensors begin with the bytes of the model's; None where all are of other types."""
    compared = False
    for name, theirs in matched.items():
        ours = tensors[name]
        if not isinstance(ours, TensorRef) or not isinstance(theirs, TensorRef) or ours.dtype != theirs.dtype:
            continue
        if file.beginning(name, ours, _SAMPLE_BYTES) != file.beginning(name, theirs, _SAMPLE_BYTES):
            return False
        compared = True
    return True if compared else None


def counts_updates(around: Mapping[Any, Any]) -> bool:
    """Return whether updates of averages are counted there."""
    return any(name in around for name in _COUNTERS)


def has_begun(around: Any, count: Count) -> bool:
    """Return False where a counter of updates in the dict is 0."""
    values = [around[name] for name in _COUNTERS if name in around] if isinstance(around, dict) else []
    return not any(count(value) == 0 for value in values)


def counter(file: Unpickled) -> Count:
    """Return what reads a counter of a file: a number, or a tensor of one."""

    def count(value: object) -> int | float | None:
        if isinstance(value, TensorRef):
            return file.scalar("a counter of updates", value)
        return value if isinstance(value, int | float) else None

    return count
