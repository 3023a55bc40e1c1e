"""Find the weights and the clocks in what a trainer pickled, by the table in `layouts.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ema_cli.checkpoint import MIN_CLOCK, Clock, Progress
from ema_cli.errors import CheckpointError, NoWeights, option
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.values import Inert, Refused, TensorRef
from ema_cli.formats.pickles.whole_module import is_module, module_tensors
from ema_cli.formats.trainers.choice import Found, Tensors, choose, choose_bare, refuse_raw
from ema_cli.formats.trainers.layouts import COMPOSER, DCP_OTHERS, EXTRA_STATE, LAYOUTS, OWN_MARK, PLAIN, Layout
from ema_cli.law.time import Unit

_CLOCK_KEYS = {key for keys in PLAIN.clocks.values() for key in keys}
_PLAIN_VALUES = (str, int, float, bool, bytes, complex)

Scalar = Callable[[str, TensorRef], int | float | None]  # reads a tensor of one element


def find_weights(root: Any, options: ReadOptions, scalar: Scalar) -> Found:
    """Return where the weights are in the unpickled `root`; `scalar` reads a one-element tensor.

    Raises:
        NoWeights: where no known place holds tensors.
        CheckpointError, RunError: where the place is ambiguous, or the weights asked for are not there.
    """
    if is_module(root):
        found = Found(None, module_tensors(root), Progress())
        choose_bare(found, options)
    elif isinstance(root, Inert):
        raise CheckpointError(
            f"a pickled object of class {root.kind}, which is no module of torch's",
            hint="save model.state_dict() and average those files",
        )
    elif not isinstance(root, dict):
        raise NoWeights("holds no dict of tensors")
    else:
        layout = next(each for each in LAYOUTS if all(_has(root, mark) for mark in each.marks))
        found = _find(layout, root, options, scalar)
        if options.key is not None:
            chosen = _at_key(root, options.key)
            if chosen is not found.tensors:
                # The clocks are the trainer's all the same; whether these are averages, only the user knows.
                found = Found(found.trainer, chosen, found.progress)
    _keep_tensors(found, options)
    return found


def progress_of(root: dict[Any, Any]) -> Progress:
    """Return the clocks in what Lightning, or its Fabric in a loop of one's own, keeps beside the weights."""
    trainer = "Lightning" if "pytorch-lightning_version" in root else None
    layout = next(each for each in LAYOUTS if each.trainer == trainer)
    return _progress(layout, root, lambda name, ref: None)


def _find(layout: Layout, root: dict[Any, Any], options: ReadOptions, scalar: Scalar) -> Found:
    progress = _progress(layout, root, scalar)
    if layout is PLAIN and options.key is not None:
        return Found(None, _at_key(root, options.key), progress)
    places = {name: tensors for name in layout.weights if (tensors := _tensors_at(root, name)) is not None}
    beside = {name: tensors for name in layout.beside if (tensors := _tensors_at(root, name)) is not None}
    if layout is PLAIN and not places and _is_state_dict(root):
        found = Found(None, root, progress)
        choose_bare(found, options)
        return found
    if layout.only_averages:
        return _only_averages(layout, root, places, progress, options)
    if len(places) > 1:
        first, second, *_ = places
        raise CheckpointError(
            f"holds weights under '{first}' and under '{second}'", hint=f"say which: {option('key', f'{first}')}"
        )
    if not places:
        return _only_averages(layout, root, beside, progress, options)
    (place,) = places
    found = Found(layout.trainer, _join(layout, root, places[place]), progress)
    _note_others(found, layout, root, {place, *beside})
    if layout is COMPOSER:
        _choose_composer(found, root, options)
    elif layout.raw and isinstance(root.get(layout.raw), dict):
        why = f"{layout.trainer}'s weight averaging was on: '{place}' holds averages"
        raw = _without_prefix(root[layout.raw], layout.raw_prefix)
        choose(found, raw=raw, averages=found.tensors, options=options, why=why)
    elif layout.averaged_if and _dig(root, layout.averaged_if):
        refuse_raw(found, f"{layout.trainer} saved its moving average as the model", options)
    elif isinstance(root.get(OWN_MARK), dict):
        refuse_raw(found, "ema-cli's callback saved its average as the model", options)
    elif beside:
        name = next(iter(beside))
        choose(found, raw=found.tensors, averages=beside[name], options=options, where=name)
    else:
        choose_bare(found, options)
    return found


def _note_others(found: Found, layout: Layout, root: dict[Any, Any], known: set[str]) -> None:
    """Say which other dicts of tensors stand beside the model at the top, and are not taken."""
    used = {place.partition("/")[0] for place in (*known, *layout.joined, layout.raw or "")}
    others = [
        name
        for name, value in root.items()
        if isinstance(name, str)
        and name not in used
        and not DCP_OTHERS.match(name)
        and isinstance(value, dict)
        and _is_state_dict(value)
    ]
    if others:
        found.notes.append(f"tensors beside the model, at {_listed(others)}, are not taken (--key)")


def _without_prefix(tensors: dict[Any, Any], prefix: str) -> Tensors:
    """Return the entries whose names begin with the prefix, under the rest of their names; all without a prefix."""
    named = {name: value for name, value in tensors.items() if isinstance(name, str) and name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in named.items()} if prefix else tensors


def _only_averages(
    layout: Layout, root: dict[Any, Any], beside: Mapping[str, Tensors], progress: Progress, options: ReadOptions
) -> Found:
    """Return the averages of a file that holds nothing else, as Ultralytics writes; or raise what is the matter."""
    if beside:
        name = next(iter(beside))
        found = Found(layout.trainer, beside[name], progress)
        refuse_raw(found, f"it holds nothing but averages, in '{name}'", options)
        return found
    for name in layout.weights:
        value = _dig(root, name)
        if isinstance(value, Inert):
            raise CheckpointError(
                f"holds a pickled object of class {value.kind} where weights are usual",
                hint="save model.state_dict() and average those files",
            )
    raise NoWeights(
        f"no weights in a place we know; it holds {_listed(root)}", hint=f"say where: {option('key', 'NAME')}"
    )


def _choose_composer(found: Found, root: dict[Any, Any], options: ReadOptions) -> None:
    """Settle which weights to take from a file of Composer's, whose EMA swaps them with those in its own state."""
    ema = next((part for name, part in _pairs(_dig(root, "state/algorithms")) if name == "EMA"), None)
    store = ema.get("ema_model") if isinstance(ema, dict) else None
    if not isinstance(ema, dict) or not isinstance(store, dict):
        return choose_bare(found, options)
    other = dict(found.tensors)
    for part in ("named_parameters_dict", "named_buffers_dict"):
        values = store.get(part)
        for name, value in values.items() if isinstance(values, dict) else ():
            _check_name(name)
            # With several processes Composer keeps the names that DDP gives.
            bare = name if name in other else name.removeprefix("module.")
            if bare not in other:
                raise CheckpointError(f"Composer's EMA has '{bare}', which 'state.model' does not have")
            other[bare] = value
    if ema.get("ema_weights_active") is True:
        why = "Composer's EMA was on: 'state.model' holds averages"
        return choose(found, raw=other, averages=found.tensors, options=options, why=why)
    return choose(found, raw=found.tensors, averages=other, options=options, where="state.algorithms")


def _progress(layout: Layout, root: dict[Any, Any], scalar: Scalar) -> Progress:
    clocks: dict[Unit, Clock] = {}
    for unit, places in layout.clocks.items():
        for place in places:
            value = _dig(root, place)
            count = _count(scalar(place, value) if isinstance(value, TensorRef) else value)
            # Composer leaves samples and tokens at 0 where the loader does not count them.
            if count is not None and not (count == 0 and unit in (Unit.SAMPLE, Unit.TOKEN)):
                clocks.setdefault(unit, Clock(count, "file"))
    epoch = clocks.get(Unit.EPOCH)
    if epoch is None:
        return Progress(clocks)
    if layout.epochs == "from 0" and not (layout.unfinished and _dig(root, layout.unfinished) is False):
        clocks[Unit.EPOCH] = replace(epoch, value=epoch.value + 1)
    elif layout.epochs == "next":
        clocks[Unit.EPOCH] = replace(epoch, value=max(epoch.value - 1, Fraction(0)))
    in_epoch = _count(_dig(root, f"{COMPOSER.clocks[Unit.BATCH][0]}_in_epoch")) if layout is COMPOSER else None
    return Progress(
        clocks,
        epoch_origin_unknown=layout.epochs == "unknown" and epoch.value.denominator == 1,
        batch_in_epoch=None if in_epoch is None else int(in_epoch),
    )


def _join(layout: Layout, root: dict[Any, Any], tensors: Tensors) -> Tensors:
    """Return the weights with the further state dicts that belong to the model."""
    joined = dict(tensors) if layout.joined else tensors
    for place, prefix in layout.joined.items():
        for name, value in (_tensors_at(root, place) or {}).items():
            if f"{prefix}{name}" in tensors:
                raise CheckpointError(f"'{prefix}{name}' is in '{place}' and in the model")
            joined = {**joined, f"{prefix}{name}": value}
    return joined


def _keep_tensors(found: Found, options: ReadOptions) -> None:
    """Drop plain values that stand between the tensors (a step in a bare state dict), and say so."""
    kept: dict[str, object] = {}
    dropped = []
    for name, value in found.tensors.items():
        plain = value is None or isinstance(value, _PLAIN_VALUES)
        if _is_extra_state(name) and not isinstance(value, TensorRef | None):
            if not options.copies(name):
                raise CheckpointError(
                    f"'{name}' is no tensor, but what only the module's own code can read",
                    hint=f"leave it out of the average and of the output: {option('copy', f'*{EXTRA_STATE}')}",
                )
            dropped.append(name)
        elif plain:
            dropped += [] if name in _CLOCK_KEYS else [name]
        else:
            _check_name(name)
            kept[name] = value
    if not kept:
        raise NoWeights("holds no tensors where its weights should be")
    if dropped:
        found.notes.append(f"not tensors, left out: {_listed(dropped)}")
    found.tensors, found.left_out = kept, tuple(name for name in dropped if isinstance(name, str))


def _is_extra_state(name: object) -> bool:
    return isinstance(name, str) and name.endswith(EXTRA_STATE)


def _check_name(name: object) -> None:
    """Raise a CheckpointError for a key that cannot be a tensor's name in the output."""
    if not isinstance(name, str):
        raise CheckpointError(f"a tensor has a key of type {type(name).__name__}, which is not a name")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the tensor name '{name[:60]}' is not valid text") from None
    if name == "__metadata__":
        raise CheckpointError("a tensor is named '__metadata__', which safetensors keeps for itself")


def _at_key(root: dict[Any, Any], key: str) -> Tensors:
    value: Any = root
    rest = key
    while rest:
        if not isinstance(value, dict):
            break
        if rest in value:
            value, rest = value[rest], ""
        else:
            head, _, rest = rest.partition(".")
            value = value.get(head)
    tensors = _as_tensors(value)
    if tensors is None:
        raise CheckpointError(f"has no tensors under {option('key', key)}", hint=f"at the top it holds {_listed(root)}")
    return tensors


def _tensors_at(root: dict[Any, Any], place: str) -> Tensors | None:
    return _as_tensors(_dig(root, place))


def _as_tensors(value: Any) -> Tensors | None:
    """Return a state dict, or that of a whole module; None for anything else."""
    if is_module(value):
        return module_tensors(value)
    return value if isinstance(value, dict) and _is_state_dict(value) else None


def _is_state_dict(value: dict[Any, Any]) -> bool:
    return any(isinstance(item, TensorRef | Refused) for item in value.values())


def _has(root: dict[Any, Any], place: str) -> bool:
    head, _, last = place.rpartition("/")
    around = _dig(root, head) if head else root
    return isinstance(around, dict) and last in around


def _dig(value: Any, place: str) -> Any:
    for key in place.split("/"):
        if isinstance(value, list) and key == "-1":
            value = value[-1] if value else None
        else:
            value = value.state if isinstance(value, Inert) else value  # an argparse.Namespace
            value = value.get(key) if isinstance(value, dict) else None
    return value


def _listed(names: Iterable[Any]) -> str:
    """Return the first few names for a message; a key may be anything, a number of thousands of digits too."""
    texts = [name for name in names if isinstance(name, str)]
    return ", ".join(f"'{name[:40]}'" for name in texts[:8]) or "no names"


def _count(value: Any) -> Fraction | None:
    """Return a counter as an exact number, None for anything that is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value < 0 or value != value or value > 1 << 63 or 0 < value < MIN_CLOCK:
        return None
    # repr: 0.3 is meant as 3/10, not as the nearest binary number.
    return Fraction(repr(value))


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the (name, state) pairs of Composer's list of algorithms."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, list | tuple) and len(item) == 2:
            yield item[0], item[1]
