"""Save and load the state that a resumed run needs to continue with equal bits: averages, clocks, laws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, RunError
from ema_cli.law.branches import UNKNOWN, Lineage, lineage_from_list, lineage_to_list
from ema_cli.law.time import Unit
from ema_cli.online.clocks import Clocks
from ema_cli.online.sharded import cut_like, local, placed_like
from ema_cli.online.tracked import Slot, Tracked

if TYPE_CHECKING:
    from ema_cli.online.averages import Averages

_VERSION = 1
_NAMES = (
    "averages", "copied", "first", "laws", "unit", "clocks", "previous", "began", "updates", "mixed",
)  # fmt: skip
_WHOLE = "load what state_dict() returned, whole"

StateDict = dict[str, Any]
"""A state as torch and the trainers pass it: names to tensors, text, numbers and inner states."""


def take_state(averages: Averages) -> StateDict:
    """Return the state of the averages; for `EMA.state_dict`, which describes it.

    Everything but tensors is text, and all names are always present: torch.distributed.checkpoint loads only the
    names that the state of the new run has.
    """
    store = averages.settled_store()
    averaged, copied = store.tracked.averaged, store.tracked.copied
    previous, slots = averages.events.previous, [*averaged, *copied]
    return {
        "version": _VERSION,
        "averages": {
            name: _tensors_by_name(averaged, parts) for name, parts in zip(averages.names, store.averages, strict=True)
        },
        "copied": _tensors_by_name(copied, store.copies),
        "first": None
        if averages.first is None
        else _tensors_by_name(slots, [averages.first[slot.name] for slot in slots]),
        "laws": _laws(averages),
        "unit": str(averages.tracks.unit),
        "clocks": " ".join(f"{unit}={value}" for unit, value in averages.clocks.passed.items()),
        "previous": None if previous is None else str(previous),
        "began": None if averages.began is None else str(averages.began),
        "updates": averages.updates,
        "mixed": averages.mixed,
        "branches": json.dumps(lineage_to_list(averages.lineage)),
    }


@dataclass(frozen=True, slots=True)
class _State:
    """What a state says, read and checked as far as it can be without a model."""

    averages: Mapping[str, Mapping[str, Tensor]]
    copied: Mapping[str, Tensor]
    first: Mapping[str, Tensor] | None
    laws: Mapping[str, str]
    unit: Unit
    clocks: Clocks
    previous: Fraction | None
    began: Fraction | None
    updates: int
    mixed: bool
    lineage: Lineage

    @classmethod
    def parse(cls, state: StateDict) -> _State:
        """Read a state.

        Raises:
            RunError: naming what is missing, or is not what `take_state` writes there.
        """
        version = state.get("version") if isinstance(state, Mapping) else type(state).__name__
        if version != _VERSION:
            raise RunError(f"this is no state of an EMA, or one of a newer version: {version!r}")
        missing = [name for name in _NAMES if name not in state]
        if missing:
            raise RunError(f"the state is not whole: it has no '{missing[0]}'", hint=_WHOLE)
        try:
            unit = Unit(state["unit"])
            passed = [entry.partition("=") for entry in state["clocks"].split()]
            averages = {str(name): _checked(tensors) for name, tensors in state["averages"].items()}
            previous = None if state["previous"] is None else Fraction(state["previous"])
            began = None if state["began"] is None else Fraction(state["began"])
            clocks = Clocks({Unit(name): Fraction(value) for name, _, value in passed})
            _check_moments(began, previous, clocks.passed.get(unit), state["updates"], state["mixed"])
            return cls(
                averages,
                _checked(state["copied"]),
                None if state["first"] is None else _checked(state["first"]),
                {str(name): str(text) for name, text in state["laws"].items()},
                unit,
                clocks,
                previous,
                began,
                state["updates"],
                state["mixed"],
                # A state of an earlier version says none.
                lineage_from_list(json.loads(state["branches"]), unit) if "branches" in state else UNKNOWN,
            )
        except (EmaError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(f"the state is damaged: {error}", hint=_WHOLE) from error


def _check_moments(
    began: Fraction | None, previous: Fraction | None, now: Fraction | None, updates: object, mixed: object
) -> None:
    """Raise a ValueError where the first copy, the last update, the clock and the number of updates do not fit."""
    if type(updates) is not int or type(mixed) is not bool:
        raise ValueError(f"{updates!r} are no updates, or {mixed!r} is neither true nor false")
    if began is None or previous is None:
        fits = began is previous and updates == 0
    else:
        fits = 0 < began <= previous and updates >= 0 and (now is None or previous <= now)
    if not fits:
        raise ValueError(f"{updates} updates do not fit a first copy at {began} and the last update at {previous}")


def _checked(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors by name; a TypeError where something else stands among them."""
    other = next((name for name, value in tensors.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise TypeError(f"'{other}' is no tensor")
    return tensors


def put_state(averages: Averages, state: StateDict, *, change_half_life: bool) -> None:
    """Load a state; if it does not fit, change nothing. For `EMA.load_state_dict`, which describes the errors."""
    saved = _State.parse(state)
    laws = _laws(averages)
    if saved.unit is not averages.tracks.unit:
        raise RunError(
            f"the state counts in {saved.unit.plural}, but this average in {averages.tracks.unit.plural}",
            hint="ask for a half-life in the same unit",
        )
    if not change_half_life and (saved.laws != laws or list(saved.averages) != averages.names):
        raise RunError(
            f"the state is of {_laws_text(saved.laws)}, but this average is of {_laws_text(laws)}",
            hint="ask for the same, or say load_state_dict(state, change_half_life=True)",
        )
    if len(saved.averages) != len(averages.names):
        raise RunError(f"the state holds {len(saved.averages)} averages, but {len(averages.names)} are asked for")
    if saved.previous is None:  # saved before the first copy: no averages to load
        averages.forget(saved.clocks)
        averages.resume(saved.lineage)
        return
    store = averages.store()
    left = _left_in(saved, store.tracked)
    averaged, copied = (
        [slot for slot in slots if slot.name not in left] for slots in (store.tracked.averaged, store.tracked.copied)
    )
    caches = store.tracked.unsaved_names()
    for name, tensors in saved.averages.items():
        _check_fits(name, tensors, averaged, caches)
    _check_fits("copied", saved.copied, copied, caches)
    if saved.first is not None:
        _check_fits("first", saved.first, [*averaged, *copied], caches)
    store.leave(left)
    store.forget_shapes()
    for tensors, parts in zip(_by_law(saved.averages, averages.names), store.averages, strict=True):
        _load(tensors, averaged, parts)
    _load(saved.copied, copied, store.copies)
    averages.first = None
    if saved.first is not None:
        slots = (*averaged, *copied)
        averages.first = {slot.name: local(cut_like(saved.first[slot.name], slot.tensor)).to("cpu") for slot in slots}
    averages.clocks = saved.clocks
    averages.events.previous = saved.previous
    averages.began = saved.began
    averages.updates = saved.updates
    averages.mixed = saved.mixed or (saved.began is not None and saved.laws != laws)
    averages.resume(saved.lineage)


def _left_in(saved: _State, tracked: Tracked) -> set[str]:
    """Return the buffers that are not saved with the model, and which the state does not have in their shape."""
    there = {**next(iter(saved.averages.values()), {}), **saved.copied}
    return {
        slot.name
        for slot in (*tracked.averaged, *tracked.copied)
        if not slot.is_saved and (slot.name not in there or there[slot.name].shape != slot.shape)
    }


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


def _check_fits(what: str, tensors: Mapping[str, Tensor], slots: Sequence[Slot], caches: set[str]) -> None:
    """Check that saved tensors have the names and shapes of the model's.

    Args:
        what: names the saved tensors.
        tensors: the saved tensors by name.
        slots: what they must fit.
        caches: names of buffers that may be among the saved ones beside those.

    Raises:
        RunError: naming the first tensor that does not fit.
    """
    names = {slot.name for slot in slots}
    different = sorted(names ^ (tensors.keys() - (caches - names)))
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
