"""Decide which opened checkpoints enter a run: half-written ones, other names of the same files and copies do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import escape

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import IncompleteCheckpoint, RunError, option
from ema_cli.formats.trainers.choice import MODEL_ITSELF, NOT_BEGUN
from ema_cli.formats.trainers.names import COPIES
from ema_cli.law.time import Unit
from ema_cli.runs.beside import holds_tensors_of
from ema_cli.runs.name_numbers import NameNumbers, advise_name_clock
from ema_cli.runs.passed_over import PassedOver
from ema_cli.storage.location import location
from ema_cli.text import natural_key

_HF_NAME = re.compile(r"(?:^|/)checkpoint-[0-9]+$")


def drop_unmarked(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """Return the checkpoints that are whole, and folders of the Hugging Face Trainer without their last file.

    The Trainer writes trainer_state.json last. Where no checkpoint has it, none is unmarked.
    """

    def has_state(checkpoint: Checkpoint) -> bool:
        return any(clock.source == "sidecar" for clock in checkpoint.progress.clocks.values())

    if not any(map(has_state, opened)):
        return opened, []
    unmarked = [checkpoint for checkpoint in opened if not has_state(checkpoint) and _HF_NAME.search(checkpoint.name)]
    return [checkpoint for checkpoint in opened if checkpoint not in unmarked], unmarked


def unmarked_error(checkpoint: Checkpoint) -> IncompleteCheckpoint:
    """Return the error of a folder that `drop_unmarked` drops."""
    return IncompleteCheckpoint("its trainer_state.json, which is written last, is missing", subject=checkpoint.path)


def drop_aliases(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[PassedOver]]:
    """Keep one checkpoint for each set of files, however many links lead to it."""
    kept: dict[object, Checkpoint] = {}
    dropped = []
    for checkpoint in sorted(opened, key=preference):
        key = files_of(checkpoint)
        if key in kept:
            dropped.append(PassedOver(checkpoint.name, f"the same file as {kept[key].name}"))
        else:
            kept[key] = checkpoint
    return list(kept.values()), dropped


def files_of(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Return which files a checkpoint consists of, whatever path leads to them."""
    return tuple(file.identity for file in checkpoint.files)


def preference(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Return a sort key for names of the same state: numbered before last, best and latest, real before linked."""
    name = checkpoint.name
    last = name.rpartition("/")[2]
    unnumbered = bool(COPIES.search(last)) or not re.search(r"[0-9]", name)
    return unnumbered, location(checkpoint.path).info(follow=False).is_link, len(name), natural_key(name)


@dataclass(frozen=True, slots=True)
class Unclocked:
    """A checkpoint without a clock that a search found beside those of a run.

    Attributes:
        checkpoint: may be a copy of one of them, or a newer one; an average tells by its tensors. None for a model
            with other tensors.
        passed_over: what is said of it.
    """

    checkpoint: Checkpoint | None
    passed_over: PassedOver


def drop_unclocked(
    checkpoints: list[Checkpoint], *, named: bool, spaced: bool
) -> tuple[list[Checkpoint], list[Unclocked]]:
    """Drop final models and others without a clock from a run whose checkpoints have one, or are `spaced`.

    Checkpoints that the user `named` are never dropped.

    Raises:
        RunError: for one with a number in its name that records no clock, where others do; and for such averages.
    """
    clocked = [checkpoint for checkpoint in checkpoints if checkpoint.progress.clocks]
    numbered = [checkpoint for checkpoint in checkpoints if not has_name_of_copy(checkpoint)]
    run = clocked or numbered
    kept: list[Checkpoint] = []
    dropped: list[Unclocked] = []
    for checkpoint in checkpoints:
        is_copy = not named and has_name_of_copy(checkpoint)
        if checkpoint.progress.clocks or not (clocked or (spaced and is_copy and numbered)):
            kept.append(checkpoint)
        elif checkpoint.averaged and is_copy:
            passed = PassedOver(checkpoint.name, f"records no clock; {checkpoint.averaged}", warn=True)
            dropped.append(Unclocked(None, passed))
        elif checkpoint.averaged:
            raise averaged_error(checkpoint)
        elif not named and not holds_tensors_of(run[-1].tensors.specs, checkpoint.tensors.specs):
            reason = f"records no clock, and has other tensors than {run[-1].name}"
            dropped.append(Unclocked(None, PassedOver(checkpoint.name, reason, warn=True)))
        elif is_copy and checkpoint.tensors.specs != run[-1].tensors.specs:
            reason = f"records no clock, and other names or types than {run[-1].name}: a copy, or a newer state"
            dropped.append(Unclocked(None, PassedOver(checkpoint.name, reason, warn=True)))
        elif is_copy:
            best = is_best(checkpoint)  # which no average compares: it is said, then
            reason = "a best one may be of any moment" if best else "an average compares it with the others"
            passed = PassedOver(checkpoint.name, f"records no clock; {reason}", note=best)
            dropped.append(Unclocked(checkpoint, passed))
        elif spaced:
            kept.append(checkpoint)  # `space` raises the error that some record a clock and some do not
        else:
            raise _unclocked_error(checkpoint, clocked[0], checkpoints)
    return kept, dropped


def _unclocked_error(checkpoint: Checkpoint, clocked: Checkpoint, checkpoints: Sequence[Checkpoint]) -> RunError:
    """Return the error for a checkpoint without a clock, where another has one; the name's number may be its clock."""
    known = clocked.progress.clocks
    unit = Unit.BATCH if Unit.BATCH in known else next(iter(known))
    column = NameNumbers.of(checkpoint.name for checkpoint in checkpoints).column(unit)
    has_number = column is not None and column.value(checkpoint.name) is not None
    advice = advise_name_clock(checkpoints, unit) if has_number else None
    leave = f"leave it out: {option('exclude', escape(checkpoint.name))}; or name the checkpoints to average"
    return RunError(
        f"records no clock, but {clocked.name} does",
        subject=checkpoint.path,
        hint=f"{advice}; or {leave}" if advice else leave,
    )


def has_name_of_copy(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is called last, best or the like, or its file has no number in its name."""
    last = checkpoint.name.rpartition("/")[2]
    return bool(COPIES.search(checkpoint.name)) or not re.search(r"[0-9]", last)


def is_best(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is called the best of its run, which may be of any moment."""
    return "best" in checkpoint.name.lower()


def averaged_error(checkpoint: Checkpoint) -> RunError:
    """Return the error that refuses a checkpoint of averages: a second average smooths twice."""
    raw, ema = option("weights", "raw"), option("weights", "ema")
    if checkpoint.averages is not None and not checkpoint.averages.begun:
        hint = f"take the raw weights stored beside them: {raw}" if checkpoint.averages.has_raw else MODEL_ITSELF
        return RunError(f"{NOT_BEGUN} ({checkpoint.averaged})", subject=checkpoint.path, hint=hint)
    if checkpoint.averages is not None and checkpoint.averages.has_raw:
        hint = f"take the raw weights stored beside them: {raw}; or average the averages: {ema}"
    elif checkpoint.averages is not None and not checkpoint.averages.sure:
        hint = f"if these are raw weights all the same, say so: {raw}; or average the averages: {ema}"
    else:
        hint = f"average the run's raw checkpoints, or these averages once more: {ema}"
    return RunError(f"is averaged already: {checkpoint.averaged}", subject=checkpoint.path, hint=hint)
