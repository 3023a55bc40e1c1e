"""Every way in which averages lie in what a trainer pickled: which tensors are the raw weights, which are averages.

`sets_in` asks in turn: the trainer's own row; the model's state dict itself, which may hold both sets; schedule-free
optimizers; what stands beside the model at the top; what callbacks and optimizers keep. Contents decide: a set is one
of averages by the way it is stored, and is the model's by names, or order, and shapes (`matching.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

from ema_cli.formats.pickles.values import Inert
from ema_cli.formats.trainers.choice import AVERAGED_MODEL
from ema_cli.formats.trainers.kept_averages import (
    STORED,
    Count,
    counter,
    counts_updates,
    has_begun,
    hidden,
    kept_sets,
    own_state,
    schedule_free,
    stored_raw,
)
from ema_cli.formats.trainers.layout import Layout, NamedTensor, Sets, StateDict, Unpickled
from ema_cli.formats.trainers.likeness import Numbers, are_related, numbers_of
from ema_cli.formats.trainers.matching import (
    Refs,
    Shaped,
    by_flat_names,
    by_names,
    by_order,
    common_prefix,
    parameters_of,
)
from ema_cli.formats.trainers.names import (
    AVERAGED_COUNT,
    AVERAGES_KEY,
    FOLLOWER_KEY,
    FROM_ITERATIONS,
    may_hold_averages,
)
from ema_cli.formats.trainers.nested import as_state_dict, dicts_around, dicts_in, dig, once

OWN_MARK = "ema_cli"  # at the top of what our callback for Lightning saved with its average as the model
_ONLINE = "online_model."
_MAX_PARTS = 8  # of a model that are looked at
_MAX_CALLED = 256  # names of averages in a dict, each of which is compared with all models beside it


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
        or schedule_free(root, place, tensors)
        or own_state(root, tensors, file)
        or sets_at(root, place, tensors, file, layout)
    )


def sets_at(
    root: Mapping[Any, Any], place: str, tensors: StateDict, file: Unpickled, layout: Layout | None = None
) -> Sets:
    """Return the tensors at a place and what is their averages elsewhere in the object.

    Args:
        root: the object.
        place: the place of the tensors in it.
        tensors: the tensors.
        file: reads numbers and the beginnings of tensors.
        layout: the trainer's row of the table, None where only the user knows what stands at the place.
    """
    return _beside(layout, root, place, tensors, file) or hidden(root, place, tensors, file) or Sets(tensors)


def sets_within(tensors: StateDict, file: Unpickled) -> Sets | None:
    """Return the sets that a state dict holds in itself, None where it is one without a sign of averages."""
    if AVERAGED_COUNT in tensors:
        return Sets(averages=tensors, why=AVERAGED_MODEL, begun=has_begun(tensors, counter(file)))
    if not may_hold_averages(tensors):
        return None
    return _flat_buffers(tensors, file) or _part_of_the_model(tensors, counter(file), numbers_of(file))


def sets_of_parts(tensors: Mapping[str, NamedTensor], count: Count, numbers: Numbers) -> Sets | None:
    """Return both sets where a part of a model is an average of the rest, in a file whose header lists tensors.

    Args:
        tensors: the tensors by their names.
        count: reads a counter.
        numbers: reads the first numbers of a tensor.
    """
    return _part_of_the_model(tensors, count, numbers)


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
        return Sets(bare, tensors, why=why, begun=has_begun(counters, counter(file)))
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
    if not matched or 2 * len(matched) <= len(parameters_of(others)):  # the hooks have one for each parameter
        return None
    second = {**others, **matched}
    if FROM_ITERATIONS.search(file.source.path.name):
        return Sets(others, second, where="ema_*")
    why = "beside its weights stand others as 'ema_*', with which mmcv's EMA hooks swap them when an epoch ends"
    return Sets(second, others, why=why)


def _part_of_the_model(tensors: StateDict, count: Count, numbers: Numbers) -> Sets | None:
    """Return both sets where a part of the model, by the first part of its names, is an average of the rest.

    The part stays: it holds the same weights as the rest then, so that the model loads as it was. Names are not enough:
    a layer called avg_pool may look like a norm. A counter of updates in it is, and numbers that follow the rest are.
    """
    outer = common_prefix(tensors)  # of a wrapper around all
    if outer:
        sets = _part_of_the_model({name.removeprefix(outer): tensors[name] for name in tensors}, count, numbers)
        return sets and sets.below(outer)
    heads = dict.fromkeys(name.partition(".")[0] for name in tensors if isinstance(name, str) and "." in name)
    for head in islice(filter(AVERAGES_KEY.search, heads), _MAX_PARTS):
        part = {name: ref for name, ref in tensors.items() if name.startswith(f"{head}.")}
        inside = {name.removeprefix(f"{head}."): ref for name, ref in part.items()}
        others = {name: ref for name, ref in tensors.items() if name not in part}
        matched = by_names(inside, others) or by_flat_names(inside, others, "")
        if not matched or not (counts_updates(inside) or are_related(_pairs(matched, others), numbers)):
            continue
        begun = has_begun(inside, count)
        if all(name.startswith(_ONLINE) for name in matched):  # the two models of ema-pytorch's wrapper
            online = {name.removeprefix(_ONLINE): ref for name, ref in others.items() if name.startswith(_ONLINE)}
            averages = {name.removeprefix(_ONLINE): ref for name, ref in matched.items()}
            return Sets(online, {**online, **averages}, where=head, begun=begun)
        names = {id(ref): name for name, ref in matched.items()}
        raw = {name: tensors[names[id(ref)]] for name, ref in part.items() if id(ref) in names}
        return Sets({**tensors, **raw}, {**tensors, **matched}, where=head, begun=begun)
    return None


def _pairs(matched: Refs, others: StateDict) -> list[tuple[str, Shaped, Shaped]]:
    """Return each average with the tensor of the model that it may be an average of."""
    return [(name, ref, raw) for name, ref in matched.items() if isinstance(raw := others[name], Shaped)]


def _beside(
    layout: Layout | None, root: Mapping[Any, Any], place: str, tensors: StateDict, file: Unpickled
) -> Sets | None:
    """Return both sets where averages stand beside the model, or beside a dict around it, under a name of their own."""
    for prefix, outer, own in dicts_around(root, place):
        by_row = layout.beside if layout and outer is root else ()
        others = {name.lower() for name in outer if isinstance(name, str)}  # each may have averages of its own
        for name in dict.fromkeys((*by_row, *_called(outer))):
            value = dig(outer, name) if name in by_row else outer.get(name)
            if name == own or value is None or _bare(name) in others - {own.lower()}:
                continue
            matched, around = _match_in(value, tensors)
            if matched and (name in by_row or _follows(name, matched, tensors, file)):
                # Where raw weights are stored, the averages may be in the model's place; else both were saved as they
                # are.
                compare = stored_raw(around) is not None
                return kept_sets(matched, around, tensors, f"{prefix}{name}", file, compare=compare)
            state = as_state_dict(value)
            if state is not None and name in by_row:
                return Sets(tensors, state, where=name)
    return None


def _called(around: Mapping[Any, Any]) -> list[str]:
    """Return the names in a dict of what is called averages, then of what may follow a model for another reason."""
    names = [name for name in around if isinstance(name, str)]
    called = dict.fromkeys(name for name in names if AVERAGES_KEY.search(name))
    followers = (name for name in names if FOLLOWER_KEY.search(name) and name not in called)
    return list(islice(chain(called, followers), _MAX_CALLED))


def _follows(name: str, matched: Refs, tensors: StateDict, file: Unpickled) -> bool:
    """Return whether what has a model's names and shapes is its average by its own name, or may be by its numbers."""
    pairs = _pairs(matched, tensors)
    return bool(AVERAGES_KEY.search(name)) or are_related(pairs, numbers_of(file), unless_constant=True)


def averages_at_top(layout: Layout, root: Mapping[Any, Any]) -> dict[str, StateDict]:
    """Return what is called averages at the top, or one level down, by its place."""
    places = {}
    for name in dict.fromkeys((*layout.beside, *_called(root))):
        value = dig(root, name)
        below = (item for _, item in once(value.items())) if isinstance(value, dict) else ()
        state = next((state for item in chain((value,), below) if (state := as_state_dict(item)) is not None), None)
        if state is not None:
            places[name] = state
    return places


def models_of_averages(root: Mapping[Any, Any]) -> dict[str, StateDict]:
    """Return the dicts, by place, whose averages stand beside them: g of g_ema, even if d has the shapes of g."""
    for prefix, around in dicts_in(root):
        called = _called(around)
        states = {
            name: state
            for name, value in around.items() if called
            if isinstance(name, str) and name not in called and (state := as_state_dict(value)) is not None
        }  # fmt: skip
        models = {
            name: state for name, state in states.items() if any(_match_in(around[at], state)[0] for at in called)
        }
        namesakes = {_bare(name) for name in called}
        chosen = {name: state for name, state in models.items() if name.lower() in namesakes} or models
        if chosen:
            return {f"{prefix}{name}": state for name, state in chosen.items()}
    return {}


def _bare(name: str) -> str:
    """Return the name of the model that follows from a name of its averages."""
    return FOLLOWER_KEY.sub("", AVERAGES_KEY.sub("", name)).lower()


def _match_in(value: Any, model: StateDict) -> tuple[Refs | None, Any]:
    """Return the model's averages in what is called so, or one level down, and the dict around them with counters."""
    state = as_state_dict(value)
    if state is not None:
        matched = by_names(state, model) or by_flat_names(state, model, "_") or by_flat_names(state, model, "")
        if matched:
            return matched, value
    if isinstance(value, list | tuple):
        return by_order(value, model), None
    inner = value.state if isinstance(value, Inert) else value
    for name, child in once(inner.items()) if isinstance(inner, dict) else ():
        if name in STORED:
            continue
        below = as_state_dict(child)
        matched = (
            by_order(child, model) if isinstance(child, list | tuple) else by_names(below, model) if below else None
        )
        if matched:
            return matched, inner
    return None, None


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
