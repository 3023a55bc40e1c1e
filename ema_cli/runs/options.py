"""How a run is opened, where a user has a choice."""

from __future__ import annotations

import fnmatch
from dataclasses import field
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Time


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a run is opened.

    Attributes:
        read: how each checkpoint is read.
        epoch_length: the batches of an epoch, to convert between epochs and batches.
        spacing: the distance between checkpoints that record no clock.
        name_clock: the unit of the number in the names, or a pattern that says where in a name which unit is.
        ignore_clocks: whether recorded clocks give way to `spacing`.
        exclude: patterns of the names of checkpoints that do not enter.
        skip_damaged: whether damaged checkpoints are passed over instead of refused.
        merge_into: the base model, a folder or a file, into which each checkpoint, an adapter, is merged.
        base: the model from which the training began, for a law that needs it.
        epochs_from_zero: whether epochs are known to be counted from 0, though the one that shows it may be gone.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    epoch_length: Time | None = None
    spacing: Time | None = None
    name_clock: str | None = None
    ignore_clocks: bool = False
    exclude: tuple[str, ...] = ()
    skip_damaged: bool = False
    merge_into: Path | None = None
    base: Path | None = None
    epochs_from_zero: bool = False

    def excluded_by(self, name: str) -> str | None:
        """Return the pattern by which the user leaves out the checkpoint called `name`, None where it may enter."""
        return next((pattern for pattern in self.exclude if fnmatch.fnmatchcase(name, pattern)), None)
