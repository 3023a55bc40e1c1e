"""Select the model's tensors and the clocks from an object that a trainer pickled, by the table in `layouts.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ema_cli.checkpoint import Progress
from ema_cli.errors import CheckpointError, NoWeights, mentioned, option
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.pickles.whole_module import is_module, module_tensors
from ema_cli.formats.trainers.averages import averages_at_top, models_of_averages, sets_at, sets_in, sets_within
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN, choose
from ema_cli.formats.trainers.counters import take_counters
from ema_cli.formats.trainers.elsewhere import is_tensor_list, joined_below, no_weights, unnamed_tensors
from ema_cli.formats.trainers.layout import Layout, Selection, Sets, StateDict, Unpickled
from ema_cli.formats.trainers.layouts import LAYOUTS, OPTIMIZERS, OTHERS, PLAIN
from ema_cli.formats.trainers.names import AVERAGES_KEY, EXTRA_STATE
from ema_cli.formats.trainers.nested import (
    as_state_dict,
    at_dots,
    dicts_around,
    dig,
    has,
    holds_tensors,
    is_state_dict,
    looked_at_once,
    quoted,
    state_dict_at,
    steps_to,
    text_key,
)
from ema_cli.formats.trainers.progress import read_progress

_CLOCK_KEYS = {key for keys in PLAIN.clocks.values() for key in keys}
_PLAIN_VALUES = (str, int, float, bool, bytes, complex)


def select_tensors(root: Any, options: ReadOptions, file: Unpickled) -> Selection:
    """Return the model's tensors in the unpickled `root`, and its clocks.

    Args:
        root: the object that was saved.
        options: what the user asked for.
        file: reads numbers and the beginnings of tensors.

    Raises:
        NoWeights: where no known place holds tensors.
        CheckpointError, RunError: where the place is ambiguous, or the weights asked for are not there.
    """
    with looked_at_once():
        return _selected(root, options, file)


def _selected(root: Any, options: ReadOptions, file: Unpickled) -> Selection:
    if is_module(root):
        tensors = module_tensors(root)
        selection = Selection(None, tensors, Progress(), layout=PLAIN)
        choose(selection, sets_within(tensors, file) or Sets(tensors), options)
    elif isinstance(root, Inert):
        raise CheckpointError(
            f"a pickled object of class {root.kind}, which is no module of torch's",
            hint="save model.state_dict() and average those files",
        )
    elif is_tensor_list(root):
        raise unnamed_tensors("at the top")
    elif not isinstance(root, dict | list | tuple):
        raise NoWeights("holds no dict of tensors")
    else:
        root = root if isinstance(root, dict) else {str(number): item for number, item in enumerate(root)}
        layout = next(layout for layout in LAYOUTS if all(has(root, mark) for mark in layout.marks))
        selection = (
            _select_at_key(layout, root, options, file, options.key)
            if options.key is not None
            else _select(layout, root, options, file)
        )
        selection.layout = layout
        selection.resumable = selection.trainer is not None or _is_of_training(root)
    _keep_tensors(selection, options)
    return selection


def progress_of(root: dict[Any, Any]) -> Progress:
    """Return the clocks in what Lightning, or its Fabric in a loop of one's own, keeps beside the weights."""
    trainer = "Lightning" if "pytorch-lightning_version" in root else None
    layout = next(layout for layout in LAYOUTS if layout.trainer == trainer)
    return read_progress(layout, root)


def _select_at_key(layout: Layout, root: dict[Any, Any], options: ReadOptions, file: Unpickled, key: str) -> Selection:
    """Return the tensors under the user's key, or what lies beside them as their averages; the clocks are the layout's.

    Whether the tensors are averages themselves, only the user knows, unless they are where the trainer has its model.
    """
    tensors = _at_key(root, key)
    if layout is not PLAIN and any(state_dict_at(root, place) is tensors for place in layout.model):
        return _select(layout, root, options, file)
    selection = Selection(layout.trainer, tensors, _progress(layout, root, options, file))
    if AVERAGES_KEY.search(key.rpartition(".")[2]):
        selection.warnings.append(AVERAGED_AGAIN)
    else:
        choose(selection, sets_at(root, "/".join(steps_to(root, key)), tensors, file), options)
    return selection


def _progress(layout: Layout, root: dict[Any, Any], options: ReadOptions, file: Unpickled) -> Progress:
    progress = read_progress(layout, root, file.scalar)
    return take_counters(progress, root, options.clock_places, file.scalar) if options.clock_key else progress


def _select(layout: Layout, root: dict[Any, Any], options: ReadOptions, file: Unpickled) -> Selection:
    """Return the tensors that the layout, and the user's options, say."""
    places = _state_dicts(root, layout.model)
    selection = Selection(layout.trainer, {}, _progress(layout, root, options, file))
    if layout.note:
        selection.notes.append(layout.note)
    if layout is PLAIN and not places and is_state_dict(root):
        choose(selection, sets_within(root, file) or Sets(root), options)
        return selection
    if layout.only_averages:
        choose(selection, _only_averages(layout, root, places), options)
        return selection
    places = places or models_of_averages(root)
    if len(places) > 1:
        first, second, *_ = (place.replace("/", ".") for place in places)
        raise CheckpointError(
            f"holds weights under '{first}' and under '{second}'", hint=f"say which: {option('key', f'{first}')}"
        )
    place, tensors = next(iter(places.items()), ("", {}))
    if not place:
        sets = _only_averages(layout, root, averages_at_top(layout, root))
        # ema-pytorch's wrapper holds the raw weights, too.
        within = sets_within(sets.averages, file) if sets.averages is not None else None
        choose(selection, within if within is not None and within.raw is not None else sets, options)
        return selection
    tensors = _join(layout, root, tensors)
    sets = sets_in(layout, root, place, tensors, file)
    _note_others(selection, layout, root, place, sets.where)
    choose(selection, sets, options)
    return selection


def _state_dicts(root: dict[Any, Any], places: tuple[str, ...]) -> dict[str, StateDict]:
    """Return the state dicts that are at any of the places."""
    return {place: tensors for place in places if (tensors := state_dict_at(root, place)) is not None}


def _note_others(selection: Selection, layout: Layout, root: dict[Any, Any], place: str, averages_at: str) -> None:
    """Note which other dicts of tensors stand beside the model at the top, and are not taken."""
    used = {place.partition("/")[0] for place in (*layout.joined, layout.raw or "", layout.averages_counter or "")}
    others = [
        f"{prefix}{name}"
        for prefix, around, own in dicts_around(root, place)
        for name, value in around.items()
        if isinstance(name, str) and name not in used and not OTHERS.match(name) and is_state_dict(value)
        if name != own and f"{prefix}{name}" != averages_at
    ]
    if others:
        selection.warnings.append(f"tensors beside the model, at {quoted(others)}, are not taken (--key)")


def _only_averages(layout: Layout, root: dict[Any, Any], averages: Mapping[str, StateDict]) -> Sets:
    """Return the averages of a file that holds nothing else, as Ultralytics writes; raise where there are none either.

    Args:
        layout: the trainer's row of the table.
        root: what was unpickled.
        averages: the state dicts that hold averages, by their places.
    """
    if averages:
        place, tensors = next(iter(averages.items()))
        return Sets(
            averages=tensors, why=f"it holds nothing but averages, in '{place}'", sure=bool(AVERAGES_KEY.search(place))
        )
    for place in layout.model:
        value = dig(root, place)
        if isinstance(value, Inert):
            raise CheckpointError(
                f"holds a pickled object of class {value.kind} where weights are usual",
                hint="save model.state_dict() and average those files",
            )
    raise no_weights(root)


def _join(layout: Layout, root: dict[Any, Any], tensors: StateDict) -> StateDict:
    """Return the weights with the further state dicts that belong to the model."""
    joined = dict(tensors) if layout.joined else tensors
    for place, prefix in layout.joined.items():
        for name, value in (state_dict_at(root, place) or {}).items():
            if f"{prefix}{name}" in tensors:
                raise CheckpointError(f"'{prefix}{name}' is in '{place}' and in the model")
            joined = {**joined, f"{prefix}{name}": value}
    return joined


def _keep_tensors(selection: Selection, options: ReadOptions) -> None:
    """Drop plain values that stand between the tensors (a step in a bare state dict), and note it."""
    kept: dict[str, object] = {}
    dropped = []
    if {*map(type, selection.tensors.values())} == {TensorRef} and {*map(type, selection.tensors)} == {str}:
        return  # as mostly
    for name, value in selection.tensors.items():
        if isinstance(value, TensorRef):
            kept[text_key(name)] = value
            continue
        is_plain = value is None or isinstance(value, _PLAIN_VALUES)
        if _is_extra_state(name) and value is not None:
            if not options.copies(name):
                raise CheckpointError(
                    f"'{name}' is no tensor, but what only the module's own code can read",
                    hint=f"leave it out of the average and of the output: {option('copy', f'*{EXTRA_STATE}')}",
                )
            dropped.append(name)
        elif is_plain:
            dropped += [] if name in _CLOCK_KEYS else [name]
        elif isinstance(value, dict | list | tuple) and not holds_tensors(value):
            dropped.append(name)  # the state of what stands beside the model, as ignite's include_self adds it
        else:
            kept[text_key(name)] = value
    if not kept:
        raise NoWeights("holds no tensors where its weights should be")
    if dropped:
        selection.notes.append(f"not tensors, left out: {quoted(dropped)}")
    selection.tensors, selection.left_out = kept, tuple(name for name in dropped if isinstance(name, str))


def _is_of_training(root: dict[Any, Any]) -> bool:
    """Return whether an entry at the top is the state of an optimizer or a scheduler."""
    containers = [kind for kind in {*map(type, root.values())} if issubclass(kind, dict | list)]
    return bool(containers) and any(
        isinstance(value, dict | list) and bool(value) and isinstance(name, str) and bool(OPTIMIZERS.match(name))
        for name, value in root.items()
    )


def _is_extra_state(name: object) -> bool:
    return isinstance(name, str) and name.endswith(EXTRA_STATE)


def _at_key(root: dict[Any, Any], key: str) -> StateDict:
    """Return the state dict under a key of the user's, in which dots descend unless they are part of a name."""
    value = at_dots(root, key) if key else None
    tensors = as_state_dict(value) or joined_below(value)
    if not tensors:
        elsewhere = no_weights(root).advice(mentioned)
        raise CheckpointError(
            f"has no tensors under {option('key', key)}", hint=elsewhere or f"at the top it holds {quoted(root)}"
        )
    return tensors
