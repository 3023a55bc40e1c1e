"""Counters that the user names with --clock-key, and what a file holds that may be one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from ema_cli.checkpoint import Clock, Progress
from ema_cli.errors import CheckpointError, option
from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.trainers.layouts import OPTIMIZERS
from ema_cli.formats.trainers.nested import at_dots, is_state_dict
from ema_cli.formats.trainers.progress import Scalar, as_count
from ema_cli.law.time import Unit

_MAX_DEPTH = 4
_MAX_ENTRIES = 256  # of a dict that is looked through
_MAX_SHOWN = 6


def take_counters(
    progress: Progress,
    root: Any,
    places: Sequence[tuple[str, Unit]],
    scalar: Scalar = lambda name, ref: None,
) -> Progress:
    """Return the clocks with those at the places that the user names, which win over the known ones.

    Args:
        progress: the clocks at known places.
        root: the object or the header that holds the counters.
        places: their places, in which dots descend unless they are part of a name, and their units.
        scalar: reads a tensor of one element.

    Raises:
        CheckpointError: where there is no such counter; it says which there are.
    """
    clocks = dict(progress.clocks)
    for place, unit in places:
        value = at_dots(root, place, in_objects=True)
        found = as_count(scalar(place, value) if isinstance(value, TensorRef) else value)
        if found is None:
            fact = f"has no number under {option('clock_key', f'{place}={unit}')}"
            raise CheckpointError(fact, hint=listed(dict(islice(counters_in(root), _MAX_SHOWN + 1))))
        clocks[unit] = Clock(found, "file")
    origin = progress.epoch_origin_unknown
    if any(unit is Unit.EPOCH for _, unit in places):
        origin = clocks[Unit.EPOCH].value.denominator == 1
    return replace(progress, clocks=clocks, epoch_origin_unknown=origin)


def counters_in(root: Any) -> Iterator[tuple[str, int]]:
    """Yield each integer at least 0 in nested dicts, by its place, as `trainer.step`; not what is an optimizer's."""
    yield from _below(root, "", _MAX_DEPTH)


def listed(counters: Mapping[str, int]) -> str:
    """Return the first few counters for a message."""
    shown = ", ".join(f"{place} = {value}" for place, value in islice(counters.items(), _MAX_SHOWN))
    return f"integers in it: {shown}{', ...' if len(counters) > _MAX_SHOWN else ''}" if shown else "it holds no integer"


def _below(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    value = value.state if isinstance(value, Inert) else value
    if not isinstance(value, dict) or (len(value) > _MAX_ENTRIES and not is_state_dict(value)):
        return
    for key, inner in value.items():
        if not isinstance(key, str) or OPTIMIZERS.match(key):
            continue
        if type(inner) is int and 0 <= inner < 1 << 63:
            yield f"{prefix}{key}", inner
        elif depth > 1:
            yield from _below(inner, f"{prefix}{key}.", depth - 1)
