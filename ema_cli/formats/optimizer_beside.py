"""What the state of an optimizer in a file beside the weights says of them."""

from __future__ import annotations

from pathlib import Path

from ema_cli.errors import EmaError
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.names import OPTIMIZER_FILES
from ema_cli.storage.location import location, names_in


def trained_schedule_free_beside(path: Path) -> bool | None:
    """Return whether a schedule-free optimizer beside the checkpoint was in train mode; None if there is none.

    In eval mode the model holds the optimizer's average.
    """
    folder = path if location(path).info().is_folder else path.parent
    name = next(filter(names_in(folder).__contains__, OPTIMIZER_FILES), None)
    if name is None:
        return None
    from ema_cli.formats.trainers.kept_averages import optimizers, trained_schedule_free

    try:
        root = open_torch(location(folder / name).open()).root
    except EmaError:
        return None  # it is no part of the model
    return trained_schedule_free(optimizers({"": root}))
