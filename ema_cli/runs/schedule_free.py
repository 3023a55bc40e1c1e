"""A run whose schedule-free optimizer keeps its state in a file beside the weights: one look, at the newest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ema_cli.checkpoint import Averages, Checkpoint
from ema_cli.errors import NoSuchWeights
from ema_cli.formats.optimizer_beside import trained_schedule_free_beside
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import AVERAGE_AGAIN


def settle_schedule_free(checkpoints: Sequence[Checkpoint], options: ReadOptions) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of a run, oldest first, with what the newest one's optimizer says of its weights.

    Raises:
        NoSuchWeights: where raw weights are asked for and the model holds the optimizer's average.
    """
    if not checkpoints or checkpoints[-1].averages is not None or options.weights == "ema":
        return tuple(checkpoints)
    *others, newest = checkpoints
    was_trained = trained_schedule_free_beside(newest.path)
    if was_trained is None:
        return tuple(checkpoints)
    from ema_cli.formats.trainers.kept_averages import SCHEDULE_FREE_EVAL, SCHEDULE_FREE_TRAIN

    if was_trained:
        return (*others, replace(newest, warnings=(*newest.warnings, SCHEDULE_FREE_TRAIN)))
    if options.weights == "raw":
        raise NoSuchWeights(f"holds no raw weights: {SCHEDULE_FREE_EVAL}", subject=newest.path, hint=AVERAGE_AGAIN)
    return (*others, replace(newest, averages=Averages(SCHEDULE_FREE_EVAL)))
