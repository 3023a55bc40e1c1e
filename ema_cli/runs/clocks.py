"""Settle the clocks of a run: facts such as the number of its first epoch show only in all checkpoints together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.errors import RunError, UsageError, option
from ema_cli.formats.trainers.names import name_clocks
from ema_cli.law.time import Time, Unit
from ema_cli.text import natural_key


def settle_clocks(checkpoints: Sequence[Checkpoint], epoch_length: Time | None) -> tuple[list[Checkpoint], list[str]]:
    """Return the checkpoints with their clocks completed, and notes on the inferences.

    The steps, in this order: take clocks from names, complete Composer's epochs, shift epochs that were counted from
    0, convert between epochs and batches by `epoch_length`.
    """
    notes: list[str] = []
    settled = [replace(checkpoint, progress=_add_name_clocks(checkpoint)) for checkpoint in checkpoints]
    settled = _complete_composer_epochs(settled)
    settled = _shift_epochs(settled, notes)
    if epoch_length is not None:
        settled = _convert_epochs(settled, epoch_length)
    return settled, notes


def _with_clock(checkpoint: Checkpoint, unit: Unit, value: Fraction, source: str) -> Checkpoint:
    clocks = {**checkpoint.progress.clocks, unit: Clock(value, source)}
    return replace(checkpoint, progress=replace(checkpoint.progress, clocks=clocks))


def _add_name_clocks(checkpoint: Checkpoint) -> Progress:
    """Add the clocks of the name, in units that neither the file nor a sidecar records."""
    progress, named = checkpoint.progress, name_clocks(checkpoint.name)
    of_epoch = progress if Unit.EPOCH in progress.clocks else named
    return replace(
        progress,
        clocks={**named.clocks, **progress.clocks},
        epoch_origin_unknown=of_epoch.epoch_origin_unknown,
    )


def _complete_composer_epochs(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Count the epoch of a checkpoint after its last batch: Composer saves that batch under the epoch's own number.

    The length of an epoch follows from any later checkpoint: (batch - batch_in_epoch) / epoch. For instance batch 25
    in epoch 2, its 5th there, means (25 - 5) / 2 = 10 batches; then batch 10, the 10th of epoch 0, completes epoch 1.
    """
    lengths = set()
    for checkpoint in checkpoints:
        epoch, batch, inside = (
            checkpoint.clock(Unit.EPOCH),
            checkpoint.clock(Unit.BATCH),
            checkpoint.progress.batch_in_epoch,
        )
        if epoch and batch is not None and inside is not None:
            lengths.add((batch - inside) / epoch)
    if len(lengths) != 1:
        return checkpoints
    (length,) = lengths
    return [_complete_epoch(checkpoint, length) for checkpoint in checkpoints]


def _complete_epoch(checkpoint: Checkpoint, length: Fraction) -> Checkpoint:
    epoch, inside = checkpoint.clock(Unit.EPOCH), checkpoint.progress.batch_in_epoch
    if epoch is None or inside is None or inside != length or length == 0:
        return checkpoint
    return _with_clock(checkpoint, Unit.EPOCH, epoch + 1, "file")


def _shift_epochs(checkpoints: list[Checkpoint], notes: list[str]) -> list[Checkpoint]:
    """Turn epochs that were counted from 0 into completed ones, unless epoch 0 is the untrained model."""
    unknown = [checkpoint for checkpoint in checkpoints if checkpoint.progress.epoch_origin_unknown]
    first = min(unknown, key=lambda checkpoint: checkpoint.clock(Unit.EPOCH) or Fraction(0), default=None)
    if first is None or first.clock(Unit.EPOCH) != 0 or first.clock(Unit.BATCH) == 0:
        return checkpoints
    notes.append(f"epochs are counted from 0 ({first.name}): each is taken as one more completed epoch")
    return [_count_from_one(checkpoint) for checkpoint in checkpoints]


def _count_from_one(checkpoint: Checkpoint) -> Checkpoint:
    clock = checkpoint.progress.clocks.get(Unit.EPOCH)
    if clock is None or not checkpoint.progress.epoch_origin_unknown:
        return checkpoint
    return _with_clock(checkpoint, Unit.EPOCH, clock.value + 1, clock.source)


def _convert_epochs(checkpoints: list[Checkpoint], epoch_length: Time) -> list[Checkpoint]:
    if epoch_length.unit is not Unit.BATCH or not 0 < epoch_length.value < float("inf"):
        raise UsageError(f"'{epoch_length}' is not a number of batches", option="epoch_length", hint="as in 1000ba")
    length = Fraction(epoch_length.value)
    to_batches = _filler(Unit.BATCH, Unit.EPOCH, lambda epochs: epochs * length)
    to_epochs = _filler(Unit.EPOCH, Unit.BATCH, lambda batches: batches / length)
    return [to_epochs(to_batches(checkpoint)) for checkpoint in checkpoints]


def _filler(unit: Unit, known: Unit, convert: Callable[[Fraction], Fraction]) -> Callable[[Checkpoint], Checkpoint]:
    """Return a function that adds a missing clock in `unit`, converted from the clock in `known` if there is one."""

    def fill(checkpoint: Checkpoint) -> Checkpoint:
        clocks: Mapping[Unit, Clock] = checkpoint.progress.clocks
        if unit in clocks or known not in clocks:
            return checkpoint
        return _with_clock(checkpoint, unit, convert(clocks[known].value), "epoch length")

    return fill


def space(checkpoints: Sequence[Checkpoint], spacing: Time, absent: Sequence[str] = ()) -> list[Checkpoint]:
    """Give the k-th checkpoint, in natural order of the names and from 1, the clock k x `spacing`.

    A name without a number, as `final.pt`, comes last. Those that are `absent`, by name, are counted: they were saved,
    and do not enter.

    Raises:
        UsageError: for a spacing of 0 or infinity.
        RunError: if checkpoints record a clock in that unit themselves.
    """
    if not 0 < spacing.value < float("inf"):
        raise UsageError(f"'{spacing}' is no distance between checkpoints", option="spacing", hint="as in 100ba")
    unit, step = spacing.unit, Fraction(spacing.value)
    with_clock = [checkpoint for checkpoint in checkpoints if unit in checkpoint.progress.clocks]
    if with_clock:
        without = next((checkpoint for checkpoint in checkpoints if unit not in checkpoint.progress.clocks), None)
        if without is None:
            message, hint = "all checkpoints", f"leave out {option('spacing')}"
        else:
            message, hint = f"{with_clock[0].name} does, {without.name} does not", "name those that do not"
        raise RunError(f"{option('spacing', f'{spacing}')}: {message} record a clock in {unit.plural}", hint=hint)
    names = sorted({*absent, *(checkpoint.name for checkpoint in checkpoints)}, key=_name_order)
    clocks = {name: step * number for number, name in enumerate(names, 1)}
    ordered = sorted(checkpoints, key=lambda checkpoint: _name_order(checkpoint.name))
    return [_with_clock(checkpoint, unit, clocks[checkpoint.name], "spacing") for checkpoint in ordered]


def _name_order(name: str) -> tuple[object, ...]:
    return not re.search("[0-9]", name), natural_key(name)
