"""The run that the inputs of an average lie in: it tells clocks and remarks that they do not tell by themselves.

No numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Progress
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.types import InputRow
from ema_cli.planning.bounds import drop_outside
from ema_cli.release.clocks import progress_in
from ema_cli.runs.run import read_run
from ema_cli.runs.warnings import Remarks


@dataclass(frozen=True, slots=True)
class Around:
    """What the run at some paths gives for the inputs of an average. Its checkpoints are not kept: they may be many.

    Attributes:
        progress: the clocks of each input.
        remarks: what is said of the run, and of those of the inputs that are read.
    """

    progress: Sequence[Progress]
    remarks: Remarks


def open_around(
    paths: Sequence[Path],
    record: RecipeRecord,
    rows: Sequence[InputRow],
    inputs: Sequence[Path],
    base: Checkpoint | None,
) -> Around | None:
    """Open the run at `paths` as it was opened for an average; return None if it does not hold all inputs, or is none.

    The inputs may have been named one by one, or the folder may hold more by now: then they stand for themselves.

    Args:
        paths: where the run lies.
        record: the recipe, and how the run was opened.
        rows: what the manifest says of the inputs.
        inputs: their paths.
        base: what the training began with, where that lies outside of the run and entered; it has remarks, too.
    """
    try:
        run = drop_outside(read_run(paths, record.opened), record.recipe)
    except EmaError:
        return None
    progress = progress_in(run, inputs, record.recipe)
    if progress is None:
        return None
    by_path = {checkpoint.path.absolute(): checkpoint for checkpoint in run.checkpoints}
    read = [
        replace(by_path[path.absolute()], name=row["name"])
        for path, row in zip(inputs, rows, strict=True)
        if row["weight"] != 0
    ]
    return Around(progress, Remarks.of(run, read if base is None else [base, *read]))
