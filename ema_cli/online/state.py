"""What a resumed run needs to go on with the same bits: the averages, the clocks, and the law that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ema_cli.errors import RunError
from ema_cli.law.time import Unit
from ema_cli.online.clocks import Clocks
from ema_cli.online.sharded import cut_like, local, placed_like
from ema_cli.online.tracked import Slot

if TYPE_CHECKING:
    from ema_cli.online.ema import EMA

_VERSION = 1


def take_state(ema: EMA) -> dict[str, Any]:
    """Return the state as `EMA.state_dict` says.

    What is no tensor is text, under names that are always there: torch.distributed.checkpoint loads only what the
    state of the new run has, too.
    """
    store = ema._ready_store()
    store.settle()
    averaged, copied = store.tracked.averaged, store.tracked.copied
    previous = ema._events.previous
    return {
        "version": _VERSION,
        "averages": {name: _named(averaged, each) for name, each in zip(ema.names, store.averages, strict=True)},
        "copied": _named(copied, store.copies),
        "first": None if ema.first is None else _named([*averaged, *copied], list(ema.first.values())),
        "laws": _laws(ema),
        "unit": str(ema.tracks.unit),
        "clocks": " ".join(f"{unit}={value}" for unit, value in ema.clocks.passed.items()),
        "previous": None if previous is None else str(previous),
        "began": None if ema.began is None else str(ema.began),
        "updates": ema.updates,
        "mixed": ema.mixed,
    }


def put_state(ema: EMA, state: Mapping[str, Any], *, change_half_life: bool) -> None:
    """Put a state in place as `EMA.load_state_dict` says; where it does not fit, nothing is changed."""
    if state.get("version") != _VERSION:
        raise RunError(f"this is no state of an EMA, or one of a newer version: {state.get('version')!r}")
    averages: Mapping[str, Mapping[str, Tensor]] = state["averages"]
    if state["unit"] != ema.tracks.unit:
        raise RunError(
            f"the state counts in {Unit(state['unit']).plural}, but this average in {ema.tracks.unit.plural}",
            hint="ask for a half-life in the same unit",
        )
    if not change_half_life and (state["laws"] != _laws(ema) or list(averages) != ema.names):
        raise RunError(
            f"the state is of {_told(state['laws'])}, but this average is of {_told(_laws(ema))}",
            hint="ask for the same, or say load_state_dict(state, change_half_life=True)",
        )
    if len(averages) != len(ema.names):
        raise RunError(f"the state holds {len(averages)} averages, but {len(ema.names)} are asked for")
    passed = [entry.partition("=") for entry in state["clocks"].split()]
    clocks = Clocks({Unit(unit): Fraction(value) for unit, _, value in passed})
    if state["previous"] is None:  # saved before the first copy: the model may be another by now
        ema._store, ema.first, ema.began, ema.clocks = None, None, None, clocks
        ema._events.previous, ema.updates, ema.mixed = None, 0, False
        return
    store = ema._ready_store()
    averaged, copied = store.tracked.averaged, store.tracked.copied
    first: Mapping[str, Tensor] | None = state["first"]
    for name, tensors in averages.items():
        _check_fits(name, tensors, averaged)
    _check_fits("copied", state["copied"], copied)
    if first is not None:
        _check_fits("first", first, [*averaged, *copied])
    store.forget_shapes()
    for tensors, parts in zip(_by_law(averages, ema.names), store.averages, strict=True):
        _load(tensors, averaged, parts)
    _load(state["copied"], copied, store.copies)
    ema.first = None
    if first is not None:
        slots = (*averaged, *copied)
        ema.first = {slot.name: local(cut_like(first[slot.name], slot.tensor)).to("cpu") for slot in slots}
    ema.clocks = clocks
    ema._events.previous = Fraction(state["previous"])
    ema.began = None if state["began"] is None else Fraction(state["began"])
    ema.updates = int(state["updates"])
    ema.mixed = bool(state["mixed"]) or (ema.began is not None and state["laws"] != _laws(ema))


def _by_law(averages: Mapping[str, Mapping[str, Tensor]], names: Sequence[str]) -> list[Mapping[str, Tensor]]:
    """Return saved averages for these names: those of the same, and for the others what is left, in order."""
    others = iter([tensors for name, tensors in averages.items() if name not in names])
    return [averages[name] if name in averages else next(others) for name in names]


def _laws(ema: EMA) -> dict[str, str]:
    """Return what was asked for, as text."""
    interval = ema.tracks.interval
    return {
        "averages": ", ".join(ema.names),
        "update_interval": "every" if interval is None else str(interval),
        "start": str(ema.tracks.start),
    }


def _told(laws: Mapping[str, str]) -> str:
    return f"{laws.get('averages')} every {laws.get('update_interval')} from {laws.get('start')}"


def _named(slots: Sequence[Slot], parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return tensors by name, sharded as those of the model are."""
    return {slot.name: placed_like(part, slot.tensor) for slot, part in zip(slots, parts, strict=True)}


def _check_fits(what: str, tensors: Mapping[str, Tensor], slots: Sequence[Slot]) -> None:
    """Raise a RunError where saved tensors are not those of the model."""
    names = {slot.name for slot in slots}
    different = sorted(names ^ tensors.keys())
    if different:
        where = "the model, not in the state" if different[0] in names else "the state, not in the model"
        raise RunError(f"the state of {what} does not fit: '{different[0]}' is in {where}")
    for slot in slots:
        shape = tensors[slot.name].shape
        if shape != slot.shape:
            raise RunError(f"'{slot.name}' is {list(shape)} in the state, but {list(slot.shape)} in the model")


def _load(tensors: Mapping[str, Tensor], slots: Sequence[Slot], parts: Sequence[Tensor]) -> None:
    """Copy saved tensors, whole or sharded, into their places."""
    for slot, part in zip(slots, parts, strict=True):
        part.copy_(local(cut_like(tensors[slot.name], slot.tensor)))
