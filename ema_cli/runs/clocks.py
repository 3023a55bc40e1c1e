"""Settle the clocks of a run: facts such as the number of its first epoch show only in all checkpoints together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from glob import escape

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.errors import RunError, UsageError, option
from ema_cli.formats.trainers.names import name_clocks
from ema_cli.law.time import Time, Unit
from ema_cli.runs.members import pattern_of
from ema_cli.runs.name_clock import name_clocks_by
from ema_cli.runs.name_numbers import NOTHING, NameNumbers
from ema_cli.runs.options import OpenOptions
from ema_cli.text import plural

RECORDED = ("file", "sidecar")  # the sources of clocks that are in a checkpoint or beside it
GIVEN_BY_NAME = "name clock"  # the source of a clock that is in the name, by the user's word
_MAX_CLOCK = 10**30
_MOST_LEFT_OUT = 4  # so many checkpoints are named in a hint
OVER = " over "  # in the source of a clock that the user gave: before the source of the one that it overrules


def settle_clocks(checkpoints: Sequence[Checkpoint], options: OpenOptions) -> tuple[list[Checkpoint], list[str]]:
    """Return the checkpoints with their clocks completed, and notes on the inferences.

    The steps, in this order: take clocks from names, as the user says or by the words in them; complete Composer's
    epochs; shift epochs that were counted from 0; convert between epochs and batches by the length of an epoch.

    Raises:
        UsageError, RunError: for a value of --name-clock that does not fit the names, and for an epoch without length.
    """
    settled = [*checkpoints]
    if options.ignore_clocks:
        settled = [replace(checkpoint, progress=Progress()) for checkpoint in settled]
    else:
        settled = _add_name_clocks(settled)
    if options.name_clock is not None:
        settled = _take_name_clock(settled, checkpoints, options.name_clock)
    settled = _complete_composer_epochs(settled)
    settled, notes = _shift_epochs(settled, known=options.epochs_from_zero)
    if options.epoch_length is not None:
        settled = _convert_epochs(settled, options.epoch_length)
    return settled, notes


def recorded_clocks(checkpoint: Checkpoint) -> dict[Unit, Clock]:
    """Return the clocks of a checkpoint that are in it or beside it, and not inferred."""
    return {unit: clock for unit, clock in checkpoint.progress.clocks.items() if clock.source in RECORDED}


def with_clock(checkpoint: Checkpoint, unit: Unit, value: Fraction, source: str) -> Checkpoint:
    """Return the checkpoint with a clock in a unit.

    Raises:
        RunError: for a value that is out of range; a product of what the user gives may be.
    """
    if value >= _MAX_CLOCK:
        raise RunError(
            f"its clock would be {float(value):.3g}{unit}, and clocks are less than 1e30",
            subject=checkpoint.path,
        )
    clocks = {**checkpoint.progress.clocks, unit: Clock(value, source)}
    return replace(checkpoint, progress=replace(checkpoint.progress, clocks=clocks))


def _add_name_clocks(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Add the clocks that names say in words, in units that neither the file nor a sidecar records."""
    named = [name_clocks(checkpoint.name) for checkpoint in checkpoints]
    numbers, still = _still_units(checkpoints, named)
    # Where a name says a unit twice, as `step_100_batch_64.pt`, the number that grows is the clock.
    columns = [(column.unit, column) for column in numbers.columns if column.unit in still]
    settled = []
    for checkpoint, words in zip(checkpoints, named, strict=True):
        progress = checkpoint.progress
        of_epoch = progress if Unit.EPOCH in progress.clocks else words
        clocks = {unit: clock for unit, clock in words.clocks.items() if unit not in still}
        for unit, column in columns:
            value = column.value(checkpoint.name)
            if unit is not None and value is not None:
                clocks[unit] = Clock(value, "name")
        progress = replace(
            progress, clocks={**clocks, **progress.clocks}, epoch_origin_unknown=of_epoch.epoch_origin_unknown
        )
        settled.append(replace(checkpoint, progress=progress))
    return settled


def _still_units(checkpoints: Sequence[Checkpoint], named: Sequence[Progress]) -> tuple[NameNumbers, set[Unit]]:
    """Return the units in which names have one number all the same while another grows, and the numbers that grow.

    Such a number is a setting of the run, as in `resnet_batch_64_1.pt`. Only an epoch may stand still while batches
    pass.
    """
    values = {unit: {words.clocks[unit].value if unit in words.clocks else None for words in named} for unit in Unit}
    still = {unit for unit, counts in values.items() if len(counts) == 1 and None not in counts}
    numbers = NameNumbers.of(checkpoint.name for checkpoint in checkpoints) if still and len(named) > 1 else NOTHING
    if not numbers.growing:
        return NOTHING, set()
    others = [unit for unit in Unit if unit is not Unit.EPOCH]
    pairs = [*zip(checkpoints, named, strict=True)]
    passes = any(len({_value(checkpoint, words, unit) for checkpoint, words in pairs}) > 1 for unit in others)
    return numbers, still - {Unit.EPOCH} if passes else still


def _value(checkpoint: Checkpoint, words: Progress, unit: Unit) -> Fraction | None:
    clock = checkpoint.progress.clocks.get(unit) or words.clocks.get(unit)
    return clock.value if clock else None


def _no_number_error(text: str, checkpoints: Sequence[Checkpoint], missing: Sequence[Checkpoint]) -> RunError:
    """Return the error for names of which --name-clock takes no number, although it takes one of the others."""
    first = missing[0]
    read = next((one for one in checkpoints if one not in missing), None)
    if read is None:
        hint = f"the pattern must fit a whole name, as {first.name} is; in it * is any text"
    else:
        patterns = dict.fromkeys(pattern_of(checkpoints, read, one) or escape(one.name) for one in missing)
        leave = " ".join(option("exclude", pattern) for pattern in [*patterns][:_MOST_LEFT_OUT])
        hint = f"leave it out with {leave}"
    taken = option("name_clock", text)
    fact = f"has no number in its name that {taken} takes"
    if read is not None and re.search("[0-9]", first.path.stem):
        fact = f"has another kind of name than {read.name}, of which {taken} takes the number"
    return RunError(fact, subject=first.path, hint=hint)


def _take_name_clock(settled: list[Checkpoint], recorded: Sequence[Checkpoint], text: str) -> list[Checkpoint]:
    """Let the numbers in names take the place of all other clocks in their unit.

    Args:
        settled: the checkpoints.
        recorded: the same, with the clocks that they record.
        text: the value of --name-clock.
    """
    values = name_clocks_by(text, [checkpoint.name for checkpoint in settled])
    given = [values(checkpoint.name) for checkpoint in settled]
    missing = [one for one, clocks in zip(settled, given, strict=True) if not clocks]
    if missing:
        raise _no_number_error(text, settled, missing)
    taken = []
    for checkpoint, before, clocks in zip(settled, recorded, given, strict=True):
        kept = {
            unit: clock
            for unit, clock in checkpoint.progress.clocks.items()
            # A number that the user gives a unit is not counted in another one, too.
            if not (clock.source == "name" and clock.value in clocks.values())
        }
        now = replace(checkpoint, progress=replace(checkpoint.progress, clocks=kept))
        for unit, value in clocks.items():
            was = recorded_clocks(before).get(unit)
            now = with_clock(now, unit, value, GIVEN_BY_NAME + (f"{OVER}{was.source}" if was else ""))
        if Unit.EPOCH in clocks:
            progress = replace(now.progress, epoch_origin_unknown=clocks[Unit.EPOCH].denominator == 1)
            now = replace(now, progress=progress)
        taken.append(now)
    return taken


def overruled_warnings(opened: Sequence[Checkpoint], settled: Sequence[Checkpoint], options: OpenOptions) -> list[str]:
    """Return what is overruled of the clocks that checkpoints record.

    Args:
        opened: the checkpoints, with the clocks that they record.
        settled: the same, with their clocks completed.
        options: what the user says of clocks.
    """
    ignored = sum(bool(recorded_clocks(checkpoint)) for checkpoint in opened) if options.ignore_clocks else 0
    overruled = Counter(
        unit
        for checkpoint in settled
        for unit, clock in checkpoint.progress.clocks.items()
        if clock.source.startswith(GIVEN_BY_NAME + OVER)
    )
    return [
        *([f"--ignore-clocks: not used are the clocks that {_record(ignored)}"] if ignored else []),
        *(
            f"--name-clock {options.name_clock} overrules the clocks in {unit.plural} that {_record(count)}"
            for unit, count in overruled.items()
        ),
    ]


def _record(count: int) -> str:
    return f"{plural(count, 'checkpoint')} record{'s' if count == 1 else ''}"


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
    epoch, inside = checkpoint.progress.clocks.get(Unit.EPOCH), checkpoint.progress.batch_in_epoch
    if epoch is None or inside is None or inside != length or length == 0:
        return checkpoint
    return with_clock(checkpoint, Unit.EPOCH, epoch.value + 1, epoch.source)


def _shift_epochs(checkpoints: list[Checkpoint], *, known: bool) -> tuple[list[Checkpoint], list[str]]:
    """Turn epochs that were counted from 0 into completed ones, unless epoch 0 is the untrained model; note it.

    Where that is `known`, none of them needs to show it.
    """
    unknown = [checkpoint for checkpoint in checkpoints if checkpoint.progress.epoch_origin_unknown]
    first = min(unknown, key=lambda checkpoint: checkpoint.clock(Unit.EPOCH) or Fraction(0), default=None)
    if first is None or (not known and (first.clock(Unit.EPOCH) != 0 or first.clock(Unit.BATCH) == 0)):
        return checkpoints, []
    note = f"epochs are counted from 0 ({first.name}): each is taken as one more completed epoch"
    return [_count_from_one(checkpoint) for checkpoint in checkpoints], [note]


def _count_from_one(checkpoint: Checkpoint) -> Checkpoint:
    clock = checkpoint.progress.clocks.get(Unit.EPOCH)
    if clock is None or not checkpoint.progress.epoch_origin_unknown:
        return checkpoint
    return with_clock(checkpoint, Unit.EPOCH, clock.value + 1, clock.source)


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
        return with_clock(checkpoint, unit, convert(clocks[known].value), "epoch length")

    return fill
