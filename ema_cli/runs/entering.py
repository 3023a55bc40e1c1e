"""Decide which opened checkpoints enter a run: half-written ones, other names of the same files and copies do not."""

from __future__ import annotations

import re

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import IncompleteCheckpoint, RunError, option
from ema_cli.formats.trainers.names import COPIES
from ema_cli.runs.search import PassedOver
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
    unmarked = [each for each in opened if not has_state(each) and _HF_NAME.search(each.name)]
    return [each for each in opened if each not in unmarked], unmarked


def unmarked_error(checkpoint: Checkpoint) -> IncompleteCheckpoint:
    """Return the error of a folder that `drop_unmarked` drops."""
    return IncompleteCheckpoint("its trainer_state.json, which is written last, is missing", subject=checkpoint.path)


def drop_aliases(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[PassedOver]]:
    """Keep one checkpoint for each set of files, however many links lead to it."""
    kept: dict[object, Checkpoint] = {}
    dropped = []
    for checkpoint in sorted(opened, key=preference):
        key = tuple(file.identity for file in checkpoint.files)
        if key in kept:
            dropped.append(PassedOver(checkpoint.name, f"the same file as {kept[key].name}"))
        else:
            kept[key] = checkpoint
    return list(kept.values()), dropped


def preference(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Return a sort key for names of the same state: numbered before last, best and latest, real before linked."""
    name = checkpoint.name
    last = name.rpartition("/")[2]
    unnumbered = bool(COPIES.search(last)) or not re.search(r"[0-9]", name)
    return unnumbered, location(checkpoint.path).info(follow=False).is_link, len(name), natural_key(name)


def drop_unclocked_copies(
    checkpoints: list[Checkpoint], *, named: bool, spaced: bool
) -> tuple[list[Checkpoint], list[PassedOver]]:
    """Drop final models and other copies without a clock from a run whose checkpoints have one, or are `spaced`.

    Checkpoints that the user `named` are never dropped.
    """
    clocked = [checkpoint for checkpoint in checkpoints if checkpoint.progress.clocks]
    kept, dropped = [], []
    for checkpoint in checkpoints:
        last = checkpoint.name.rpartition("/")[2]
        reason = "a copy, as its name says" if COPIES.search(checkpoint.name) else "its name has no number"
        is_copy = not named and (bool(COPIES.search(checkpoint.name)) or not re.search(r"[0-9]", last))
        if checkpoint.progress.clocks or not (clocked or (spaced and is_copy)):
            kept.append(checkpoint)
        elif checkpoint.averaged:
            raise averaged_error(checkpoint)
        elif is_copy:
            dropped.append(PassedOver(checkpoint.name, "records no clock" if clocked else reason, warn=True))
        elif spaced:
            kept.append(checkpoint)  # `space` raises the error that some record a clock and some do not
        else:
            raise RunError(
                f"records no clock, but {clocked[0].name} does",
                subject=checkpoint.path,
                hint=f"name the checkpoints to average, or those without a clock together with {option('spacing')}",
            )
    return (kept, dropped) if kept else (checkpoints, [])


def averaged_error(checkpoint: Checkpoint) -> RunError:
    """Return the error that refuses a checkpoint of averages: a second average smooths twice."""
    if checkpoint.averages is not None and checkpoint.averages.has_raw:
        hint = "take the raw weights stored beside them with --weights raw, or average the averages with --weights ema"
    else:
        hint = "average the run's raw checkpoints, or these averages once more with --weights ema"
    return RunError(f"is averaged already: {checkpoint.averaged}", subject=checkpoint.path, hint=hint)
