"""Read clocks at the places that a row of a table names, in what was unpickled or parsed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ema_cli.checkpoint import MIN_CLOCK, Clock, Progress
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.trainers.layout import ClockPlaces
from ema_cli.formats.trainers.nested import dig
from ema_cli.law.time import Unit

Scalar = Callable[[str, TensorRef], int | float | None]
"""Reads a tensor of one element, given its name for errors; returns None for any other tensor."""


def read_progress(
    places: ClockPlaces, root: Any, scalar: Scalar = lambda name, ref: None, *, source: str = "file"
) -> Progress:
    """Return the clocks at the places of a row, epochs as completed ones.

    Args:
        places: the row.
        root: the object that holds them.
        scalar: reads a tensor of one element.
        source: where the object was, as a clock's source.
    """
    clocks: dict[Unit, Clock] = {}
    for unit, names in places.clocks.items():
        for place in names:
            value = dig(root, place)
            count = as_count(scalar(place, value) if isinstance(value, TensorRef) else value)
            # Trainers that do not count samples or tokens leave them at 0.
            if count is not None and not (count == 0 and unit in (Unit.SAMPLE, Unit.TOKEN)):
                clocks.setdefault(unit, Clock(count, source))
    if places.epoch_length is not None and Unit.BATCH in clocks:
        length, batch = as_count(dig(root, places.epoch_length)), clocks[Unit.BATCH]
        if length:
            clocks.setdefault(Unit.EPOCH, replace(batch, value=batch.value / length))
    epoch = clocks.get(Unit.EPOCH)
    if epoch is None:
        return Progress(clocks)
    is_unfinished = places.unfinished is not None and dig(root, places.unfinished) is False
    if places.epochs == "from 0" and not is_unfinished:
        clocks[Unit.EPOCH] = replace(epoch, value=epoch.value + 1)
    elif places.epochs == "next" or (places.epochs == "running" and is_unfinished):
        clocks[Unit.EPOCH] = replace(epoch, value=max(epoch.value - 1, Fraction(0)))
    in_epoch = as_count(dig(root, places.batch_in_epoch)) if places.batch_in_epoch else None
    return Progress(
        clocks,
        epoch_origin_unknown=places.epochs == "unknown" and epoch.value.denominator == 1,
        batch_in_epoch=None if in_epoch is None else int(in_epoch),
    )


def as_count(value: Any) -> Fraction | None:
    """Return a counter as an exact number, None for anything that is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        return None
    if value < 0 or value != value or value > 1 << 63 or 0 < value < MIN_CLOCK:
        return None
    # repr: 0.3 is meant as 3/10, not as the nearest binary number.
    return value if isinstance(value, Fraction) else Fraction(repr(value))
