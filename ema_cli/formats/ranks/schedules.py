"""Files of ranks that say of no moment: whether they are of one save, by the schedules that lie beside them.

verl saves `model_world_size_2_rank_0.pt`, in which no counter is, and `extra_state_world_size_2_rank_0.pt` with the
state of the scheduler of the learning rate, which counts the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ema_cli.errors import OTHER_SAVES, CheckpointError, Unreadable
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.nested import dig
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

_MODEL, _BESIDE = "model_world_size_", "extra_state_world_size_"
_STEPS = "lr_scheduler/last_epoch"  # torch's name of what verl steps once for each batch
_MAX_BYTES = 16 << 20  # they have some thousand


def check_schedules(files: Mapping[int, Path]) -> tuple[InputFile, ...]:
    """Check that the schedules beside the files of ranks, by their numbers, have come equally far; return their files.

    Raises:
        CheckpointError: naming the first that has not.
    """
    read: list[InputFile] = []
    first: tuple[Path, int] | None = None
    for _, path in sorted(files.items()):
        beside = path.with_name(path.name.replace(_MODEL, _BESIDE, 1))
        info = location(beside).info() if beside != path else None
        if info is None or not info.is_file or info.size > _MAX_BYTES:
            continue
        file = location(beside).open()
        steps = _steps(file)
        if steps is None:
            continue
        read.append(file)
        if first is None:
            first = beside, steps
        elif steps != first[1]:
            raise CheckpointError(
                f"its schedule of the learning rate has made {steps} steps, and that of {first[0].name} {first[1]}",
                subject=beside,
                hint=OTHER_SAVES,
            )
    return tuple(read)


def _steps(file: InputFile) -> int | None:
    """Return how far the schedule in a file is; None where it holds none, or is none of torch's."""
    try:
        steps = dig(open_torch(file).root, _STEPS)
    except Unreadable:
        raise
    except CheckpointError:
        return None
    return steps if type(steps) is int else None
