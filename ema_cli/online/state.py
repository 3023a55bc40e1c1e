"""Save and load the state that a resumed run needs to continue with equal bits: averages, clocks, laws."""

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
    from ema_cli.online.averages import Averages

_VERSION = 1

StateDict = dict[str, Any]
"""A state as torch and the trainers pass it: names to tensors, text, numbers and inner states."""


def take_state(averages: Averages) -> StateDict:
    """Return the state of the averages; for `EMA.state_dict`, which describes it.

    Everything but tensors is text, and all names are always present: torch.distributed.checkpoint loads only the
    names that the state of the new run has.
    """
    store = averages.settled_store()
    averaged, copied = store.tracked.averaged, store.tracked.copied
    previous = averages.events.previous
    return {
        "version": _VERSION,
        "averages": {
            name: _tensors_by_name(averaged, parts) for name, parts in zip(averages.names, store.averages, strict=True)
        },
        "copied": _tensors_by_name(copied, store.copies),
        "first": None
        if averages.first is None
        else _tensors_by_name([*averaged, *copied], list(averages.first.values())),
        "laws": _laws(averages),
        "unit": str(averages.tracks.unit),
        "clocks": " ".join(f"{unit}={value}" for unit, value in averages.clocks.passed.items()),
        "previous": None if previous is None else str(previous),
        "began": None if averages.began is None else str(averages.began),
        "updates": averages.updates,
        "mixed": averages.mixed,
    }


def put_state(averages: Averages, state: StateDict, *, change_half_life: bool) -> None:
    """Load a state; if it does not fit, change nothing. For `EMA.load_state_dict`, which describes the errors."""
    if state.get("version") != _VERSION:
        raise RunError(f"this is no state of an EMA, or one of a newer version: {state.get('version')!r}")
    saved: Mapping[str, Mapping[str, Tensor]] = state["averages"]
    if state["unit"] != averages.tracks.unit:
        raise RunError(
            f"the state counts in {Unit(state['unit']).plural}, but this average in {averages.tracks.unit.plural}",
            hint="ask for a half-life in the same unit",
        )
    if not change_half_life and (state["laws"] != _laws(averages) or list(saved) != averages.names):
        raise RunError(
            f"the state is of {_laws_text(state['laws'])}, but this average is of {_laws_text(_laws(averages))}",
            hint="ask for the same, or say load_state_dict(state, change_half_life=True)",
        )
    if len(saved) != len(averages.names):
        raise RunError(f"the state holds {len(saved)} averages, but {len(averages.names)} are asked for")
    passed = [entry.partition("=") for entry in state["clocks"].split()]
    clocks = Clocks({Unit(unit): Fraction(value) for unit, _, value in passed})
    if state["previous"] is None:  # saved before the first copy: no averages to load
        averages.forget(clocks)
        return
    store = averages.store()
    averaged, copied = store.tracked.averaged, store.tracked.copied
    first: Mapping[str, Tensor] | None = state["first"]
    for name, tensors in saved.items():
        _check_fits(name, tensors, averaged)
    _check_fits("copied", state["copied"], copied)
    if first is not None:
        _check_fits("first", first, [*averaged, *copied])
    store.forget_shapes()
    for tensors, parts in zip(_by_law(saved, averages.names), store.averages, strict=True):
        _load(tensors, averaged, parts)
    _load(state["copied"], copied, store.copies)
    averages.first = None
    if first is not None:
        slots = (*averaged, *copied)
        averages.first = {slot.name: local(cut_like(first[slot.name], slot.tensor)).to("cpu") for slot in slots}
    averages.clocks = clocks
    averages.events.previous = Fraction(state["previous"])
    averages.began = None if state["began"] is None else Fraction(state["began"])
    averages.updates = int(state["updates"])
    averages.mixed = bool(state["mixed"]) or (averages.began is not None and state["laws"] != _laws(averages))


def _by_law(saved: Mapping[str, Mapping[str, Tensor]], names: Sequence[str]) -> list[Mapping[str, Tensor]]:
    """Return the saved averages in the order of `names`: by name where one fits, and the rest in their own order."""
    others = iter([tensors for name, tensors in saved.items() if name not in names])
    return [saved[name] if name in saved else next(others) for name in names]


def _laws(averages: Averages) -> dict[str, str]:
    """Return the laws, the interval and the start as text."""
    interval = averages.tracks.interval
    return {
        "averages": ", ".join(averages.names),
        "update_interval": "every" if interval is None else str(interval),
        "start": str(averages.tracks.start),
    }


def _laws_text(laws: Mapping[str, str]) -> str:
    """Return the laws, the interval and the start in words."""
    return f"{laws.get('averages')} every {laws.get('update_interval')} from {laws.get('start')}"


def _tensors_by_name(slots: Sequence[Slot], parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return tensors by name, sharded like the tensors of the model."""
    return {slot.name: placed_like(part, slot.tensor) for slot, part in zip(slots, parts, strict=True)}


def _check_fits(what: str, tensors: Mapping[str, Tensor], slots: Sequence[Slot]) -> None:
    """Check that saved tensors have the names and shapes of the model's.

    Raises:
        RunError: naming the first tensor that does not fit; `what` names the saved tensors.
    """
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
