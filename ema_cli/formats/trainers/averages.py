"""Every way in which averages lie in what a trainer pickled: which tensors are the raw weights, which are averages.

`sets_in` asks in turn: the trainer's own row; the model's state dict itself, which may hold both sets; schedule-free
optimizers; what stands beside the model at the top; what callbacks and optimizers keep. Contents decide: a set is one
of averages by the way it is stored, and is the model's by names, or order, and shapes (`matching.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.trainers.choice import AVERAGED_MODEL
from ema_cli.formats.trainers.layout import Layout, NamedTensor, Sets, StateDict, Unpickled
from ema_cli.formats.trainers.matching import Refs, by_flat_names, by_names, by_order
from ema_cli.formats.trainers.names import AVERAGED_COUNT, AVERAGES_KEY, FROM_ITERATIONS, may_hold_averages
from ema_cli.formats.trainers.nested import as_state_dict, dig, is_state_dict

Count = Callable[[object], int | float | None]
"""Returns the number that a counter of updates has, None for what is none."""

OWN_MARK = "ema_cli"  # at the top of what our callback for Lightning saved with its average as the model
TEACHER = "teacher"  # beside a student: its average, or a model that does not change
# Under which averagers count their updates, beside the averages.
_COUNTERS = (AVERAGED_COUNT, "num_updates", "updates")
# Where objects keep the raw weights while their averages are in the model.
_STORED = ("collected_params", "temp_stored_params", "original_state_dict", "backup")
_ONLINE = "online_model."
_MAX_DEPTH, _MAX_VISITS = 6, 2000
_SAMPLE_BYTES = 1 << 12


def sets_in(layout: Layout, root: Mapping[Any, Any], place: str, tensors: StateDict, file: Unpickled) -> Sets:
    """Return the sets of weights in an object whose model is at `place`.

    Args:
        layout: the trainer's row of the table.
        root: the object.
        place: the place of the model in it.
        tensors: the model's tensors.
        file: reads numbers and the beginnings of tensors.
    """
    return (
        _by_row(layout, root, place, tensors, file)
        or sets_within(tensors, file)
        or _schedule_free(root, tensors)
        or _beside(layout, root, place, tensors, file)
        or _hidden(root, place, tensors, file)
        or Sets(tensors)
    )


def sets_within(tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return the sets that a state dict holds in itself, None where it is one without a sign of averages."""
    if AVERAGED_COUNT in tensors:
        return Sets(averages=tensors, why=AVERAGED_MODEL, begun=_has_begun(tensors, _count(file)))
    if not may_hold_averages(tensors):
        return None
    return _flat_buffers(tensors, file) or _part_of_the_model(tensors, _count(file))


def sets_of_parts(tensors: Mapping[str, NamedTensor], count: Count) -> Sets | None:
    """Return both sets where a part of a model is an average of the rest, in a file whose header lists tensors.

    Args:
        tensors: the tensors by their names.
        count: reads a counter.
    """
    return _part_of_the_model(tensors, count)


def _by_row(layout: Layout, root: Mapping[Any, Any], place: str, tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return what the trainer's row says of averages in the place of the model."""
    sets = layout.sets(tensors, root) if layout.sets else None
    if sets is not None:
        return sets
    raw = root.get(layout.raw) if layout.raw else None
    if isinstance(raw, dict):
        why = f"{layout.trainer}'s weight averaging was on: '{place}' holds averages"
        named = {name: value for name, value in raw.items() if str(name).startswith(layout.raw_prefix)}
        bare = {str(name).removeprefix(layout.raw_prefix): value for name, value in named.items()}
        counters = dig(root, layout.averages_counter) if layout.averages_counter else None
        return Sets(bare, tensors, why=why, begun=_has_begun(counters, _count(file)))
    reason = layout.averaged_if(root) if layout.averaged_if else None
    if reason is not None:
        return Sets(averages=tensors, why=reason, sure=layout.surely_averaged)
    if isinstance(root.get(OWN_MARK), dict):
        return Sets(averages=tensors, why="ema-cli's callback saved its average as the model")
    return None


def _flat_buffers(tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return both sets where mmcv's EMA hooks keep one in buffers `ema_layer_weight`: when an epoch ends, the raw one.

    The hooks swap the two when an epoch ends, when epochs are saved, too. What is saved by iterations is not swapped.
    """
    flat = {name: value for name, value in tensors.items() if name.startswith("ema_") and "." not in name}
    others = {name: value for name, value in tensors.items() if name not in flat}
    matched = by_flat_names({name.removeprefix("ema_"): value for name, value in flat.items()}, others, "_")
    if not matched:
        return None
    second = {**others, **matched}
    if FROM_ITERATIONS.search(file.source.path.name):
        return Sets(others, second, where="ema_*")
    why = "beside its weights stand others as 'ema_*', with which mmcv's EMA hooks swap them when an epoch ends"
    return Sets(second, others, why=why)


def _part_of_the_model(tensors: StateDict, count: Count) -> Sets | None:
    """Return both sets where a part of the model, by the first part of its names, is an average of the rest.

    The part stays: it holds the same weights as the rest then, so that the model loads as it was.
    """
    heads = dict.fromkeys(name.partition(".")[0] for name in tensors if isinstance(name, str) and "." in name)
    for head in filter(AVERAGES_KEY.search, heads):
        part = {name: ref for name, ref in tensors.items() if name.startswith(f"{head}.")}
        inside = {name.removeprefix(f"{head}."): ref for name, ref in part.items()}
        others = {name: ref for name, ref in tensors.items() if name not in part}
        matched = by_names(inside, others) or by_flat_names(inside, others, "")
        if not matched:
            continue
        begun = _has_begun(inside, count)
        if all(name.startswith(_ONLINE) for name in matched):  # the two models of ema-pytorch's wrapper
            online = {name.removeprefix(_ONLINE): ref for name, ref in others.items() if name.startswith(_ONLINE)}
            averages = {name.removeprefix(_ONLINE): ref for name, ref in matched.items()}
            return Sets(online, {**online, **averages}, where=head, begun=begun)
        names = {id(ref): name for name, ref in matched.items()}
        raw = {name: tensors[names[id(ref)]] for name, ref in part.items() if id(ref) in names}
        return Sets({**tensors, **raw}, {**tensors, **matched}, where=head, begun=begun)
    return None


def _schedule_free(root: Mapping[Any, Any], tensors: StateDict) -> Sets | None:
    """Return what a schedule-free optimizer's state says: in eval mode the model is its average."""
    for optimizer in _optimizers(root):
        groups = optimizer.get("param_groups")
        group = groups[0] if isinstance(groups, list) and groups else None
        if not isinstance(group, dict) or "weight_sum" not in group or "k" not in group:
            continue
        if group.get("train_mode") is False and group["k"]:
            why = "its schedule-free optimizer was in eval mode, in which the model holds the optimizer's average"
            return Sets(averages=tensors, why=why)
        if group.get("train_mode") is True:
            note = (
                "its schedule-free optimizer was in train mode: these are the points where gradients are taken, not "
                "the optimizer's averages, which the model holds after optimizer.eval()"
            )
            return Sets(tensors, note=note)
    return None


def _optimizers(root: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    """Yield the states of optimizers at the top of an object, or in a list or dict there."""
    for value in root.values():
        inner = value.values() if isinstance(value, dict) and "param_groups" not in value else ()
        for state in (*(value if isinstance(value, list | tuple) else (value,)), *inner):
            if isinstance(state, dict) and "param_groups" in state:
                yield state


def _beside(layout: Layout, root: Mapping[Any, Any], place: str, tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return both sets where averages stand beside the model under a name of their own."""
    top = place.partition("/")[0]
    for name in _called(layout, root):
        value = dig(root, name)
        if name == top or value is None:
            continue
        matched, counters = _match_in(value, tensors)
        if matched:
            return Sets(tensors, {**tensors, **matched}, where=name, begun=_has_begun(counters, _count(file)))
        state = as_state_dict(value)
        if state is not None and name in layout.beside:
            return Sets(tensors, state, where=name)
    return None


def _called(layout: Layout | None, root: Mapping[Any, Any]) -> Iterable[str]:
    """Return the places at the top that are called averages: those of the row first."""
    called = [name for name in root if isinstance(name, str) and (AVERAGES_KEY.search(name) or name == TEACHER)]
    return dict.fromkeys((*(layout.beside if layout else ()), *called))


def averages_at_top(layout: Layout, root: Mapping[Any, Any]) -> dict[str, StateDict]:
    """Return what is called averages at the top, or one level down, by its place."""
    places = {}
    for name in _called(layout, root):
        value = dig(root, name)
        below = value.values() if isinstance(value, dict) else ()
        state = next((state for item in (value, *below) if (state := as_state_dict(item)) is not None), None)
        if state is not None:
            places[name] = state
    return places


def model_of_averages(root: Mapping[Any, Any]) -> tuple[str, StateDict] | None:
    """Return the place and the tensors of the one dict at the top whose averages stand beside it, if there is one."""
    called = dict.fromkeys(_called(None, root))
    states = {
        name: state
        for name, value in root.items()
        if isinstance(name, str) and name not in called and (state := as_state_dict(value)) is not None
    }
    models = [item for item in states.items() if any(_match_in(root[name], item[1])[0] for name in called)]
    return models[0] if len(models) == 1 else None


def _match_in(value: Any, model: StateDict) -> tuple[Refs | None, Any]:
    """Return the model's averages in what is called so, or one level down, and the dict around them with counters."""
    state = as_state_dict(value)
    if state is not None:
        matched = by_names(state, model)
        if matched:
            return matched, value
    inner = value.state if isinstance(value, Inert) else value
    for name, child in inner.items() if isinstance(inner, dict) else ():
        if name in _STORED:
            continue
        below = as_state_dict(child)
        matched = (
            by_order(child, model) if isinstance(child, list | tuple) else by_names(below, model) if below else None
        )
        if matched:
            return matched, inner
    return None, None


def _hidden(root: Mapping[Any, Any], place: str, tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return both sets where a callback or an optimizer keeps averages, or while they are in use the raw weights.

    Whether the averages were in use when the model was saved, their bytes say: they equal the model's then.
    """
    for where, around, averages in _kept(root, place):
        stored = next((around[name] for name in _STORED if isinstance(around.get(name), list | tuple | dict)), None)
        matched = _match_one(averages, tensors)
        if matched is None:
            if stored:
                why = f"'{where}' holds averages and weights that were stored while those took the model's place"
                return Sets(averages=tensors, why=why, sure=False)
            continue
        if not _has_begun(around, _count(file)):
            return Sets(tensors, {**tensors, **matched}, where=where, begun=False)
        if not _equal(matched, tensors, file):
            return Sets(tensors, {**tensors, **matched}, where=where)
        raw = _match_one(stored, tensors) if stored else None
        why = f"its weights equal the averages that it keeps in '{where}'"
        return Sets({**tensors, **raw} if raw else None, tensors, why=why)
    return None


def _match_one(values: Any, tensors: StateDict) -> Refs | None:
    return by_order(values, tensors) if isinstance(values, list | tuple) else by_names(values, tensors)


def _kept(root: Mapping[Any, Any], place: str) -> Iterator[tuple[str, Mapping[Any, Any], Any]]:
    """Yield tensors that are called averages, below the top: their place, the dict around them and the tensors."""
    top = place.partition("/")[0]
    todo: list[tuple[str, Any, int]] = [(str(name), value, 1) for name, value in root.items() if name != top]
    for _ in range(_MAX_VISITS):
        if not todo:
            return
        where, value, depth = todo.pop(0)
        value = value.state if isinstance(value, Inert) else value
        if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
            todo += [(f"{where}.{at}", item, depth + 1) for at, item in enumerate(value[:_MAX_DEPTH])]
        elif isinstance(value, dict):
            for name, item in value.items():
                is_list = isinstance(item, list | tuple) and any(isinstance(each, TensorRef) for each in item)
                if AVERAGES_KEY.search(str(name)) and (is_list or is_state_dict(item)):
                    yield f"{where}.{name}", value, item
                elif depth < _MAX_DEPTH and name not in ("state", "param_groups") and not is_list:
                    todo.append((f"{where}.{name}", item, depth + 1))


def _equal(matched: Refs, tensors: StateDict, file: Unpickled) -> bool:
    """Return whether the tensors begin with the bytes of the model's."""
    for name, theirs in matched.items():
        ours = tensors[name]
        if not isinstance(ours, TensorRef) or not isinstance(theirs, TensorRef) or ours.dtype != theirs.dtype:
            return False
        if file.beginning(name, ours, _SAMPLE_BYTES) != file.beginning(name, theirs, _SAMPLE_BYTES):
            return False
    return True


def _has_begun(around: Any, count: Count) -> bool:
    """Return False where a counter of updates in the dict is 0."""
    values = [around[name] for name in _COUNTERS if name in around] if isinstance(around, dict) else []
    return not any(count(value) == 0 for value in values)


def _count(file: Unpickled) -> Count:
    """Return what reads a counter of a file: a number, or a tensor of one."""

    def count(value: object) -> int | float | None:
        if isinstance(value, TensorRef):
            return file.scalar("a counter of updates", value)
        return value if isinstance(value, int | float) else None

    return count


# ---- Trainers that save averages in the place of the model ----


def opennmt_average(root: Mapping[Any, Any]) -> str | None:
    """Return how it is known that OpenNMT-py saved its average as the model."""
    return "OpenNMT-py saved its moving average as the model" if dig(root, "opt/average_decay") else None


def stripped_yolo(root: Mapping[Any, Any]) -> str | None:
    """Return how it is known that YOLO's EMA was put in the place of the model, as is done when training ends."""
    if root.get("ema") is None and root.get("epoch") == -1:
        return "its optimizer was stripped when training ended, which puts the EMA in the place of the model"
    return None


def yolox_average(root: Mapping[Any, Any]) -> str:
    """Return why YOLOX's model is taken for its average."""
    return "YOLOX saves its EMA as the model, unless that was switched off"
