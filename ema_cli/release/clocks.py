"""Settle the clocks of the inputs of an average anew, and compare them with what its manifest says of them. No numpy.

Nothing that the manifest says of a clock's source is believed: the checkpoints and the recipe's own options decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ema_cli._version import __version__
from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.errors import CheckpointError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Unit
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.types import InputRow, Manifest, RecipeRow
from ema_cli.planning.clock_checks import count_names
from ema_cli.runs.clocks import OVER, settle_clocks
from ema_cli.runs.even_spacing import space
from ema_cli.runs.order import order_checkpoints
from ema_cli.runs.run import Run

Clocks = Mapping[Unit, Clock]


class OtherClock(CheckpointError):
    """A checkpoint whose clock is not the one that the manifest gives it: one of the two has been changed."""


def settle_inputs(
    opened: Sequence[Checkpoint],
    manifest: Manifest,
    record: RecipeRecord,
    in_run: Callable[[], Sequence[Progress] | None],
) -> list[Progress]:
    """Return the clocks of the inputs as the checkpoints give them now.

    They are settled among the inputs alone, as if each had been named. What follows from a whole run, as the k-th
    distance or an epoch counted from 0, may need the others: if the first clocks are not those of the manifest, those
    in the run count.

    Args:
        opened: the inputs, with the clocks that they record.
        manifest: what is said of them.
        record: its recipe, and how the run was opened.
        in_run: returns their clocks in the run that they lie in, which may have to be opened; None if they lie in none.

    Raises:
        OtherClock: for an input whose clock is another one.
        CheckpointError: for a clock of the manifest that is none.
        UsageError, RunError: for options of the recipe that no run can be opened with.
    """
    rows = manifest["inputs"]
    same_version = manifest["tool"]["version"] == __version__  # another may read fewer clocks from the same files
    settled = settle_alone(opened, record)
    different = _first_difference(settled, rows, strict=same_version)
    if different is not None and (progress := in_run()) is not None:
        settled = list(progress)
        different = _first_difference(settled, rows, strict=same_version)
    if different is not None:
        number, unit = different
        now, was = settled[number].clocks.get(unit), clocks_of(rows[number]).get(unit)
        values = [f"{clock.value}{unit}" if clock else "none" for clock in (now, was)]
        raise OtherClock(
            f"its clock is {values[0]}, but was {values[1]} when it was averaged",
            subject=opened[number].path,
            hint="bring back the checkpoints as they were, with all that lay beside them; or the manifest is not true",
        )
    if same_version:
        return settled
    return [
        replace(progress, clocks={unit: clock for unit, clock in progress.clocks.items() if str(unit) in row["clocks"]})
        for progress, row in zip(settled, rows, strict=True)
    ]


def overruled_by(recipe: RecipeRow, sources: Sequence[str]) -> tuple[str, ...]:
    """Return the options of a recipe by which recorded clocks were overruled, as a command line has them.

    Args:
        recipe: the recipe of a manifest.
        sources: the sources of the clocks of all inputs.
    """
    if not any(OVER in source for source in sources):
        return ()
    named = recipe.get("name_clock")
    return (
        *([f"--name-clock {named}"] if named else []),
        *(["--ignore-clocks"] if recipe.get("ignore_clocks") else []),
    )


def settle_alone(opened: Sequence[Checkpoint], record: RecipeRecord) -> list[Progress]:
    """Return the clocks of checkpoints as if they were all that there is."""
    settled, _ = settle_clocks(opened, record.opened)
    if record.opened.spacing is not None:
        settled, _ = space(settled, record.opened.spacing, opened)
    ordered, units, _ = order_checkpoints(settled)
    run = Run(opened[0].path.parent, ordered, units)
    return progress_in(run, [checkpoint.path for checkpoint in opened], record.recipe) or []


def progress_in(run: Run, paths: Sequence[Path], recipe: Recipe) -> list[Progress] | None:
    """Return the clocks that the checkpoints at some paths have in a run; None if they are not all in it."""
    if not run.units and recipe.needs_no_order(len(run.checkpoints)):
        run = count_names(run)
    by_path = {checkpoint.path.absolute(): checkpoint.progress for checkpoint in run.checkpoints}
    progress = [by_path.get(path.absolute()) for path in paths]
    return [each for each in progress if each is not None] if None not in progress else None


def _first_difference(
    settled: Sequence[Progress], rows: Sequence[InputRow], *, strict: bool
) -> tuple[int, Unit] | None:
    """Return the number of the first input whose clock the manifest gives otherwise, and its unit.

    With `strict`, a clock that the manifest does not give is a difference, too.
    """
    for number, (progress, row) in enumerate(zip(settled, rows, strict=True)):
        given = clocks_of(row)
        for unit in (*given, *(progress.clocks if strict else ())):
            now, was = progress.clocks.get(unit), given.get(unit)
            if now is None or was is None or now.value != was.value:
                return number, unit
    return None


def clocks_of(row: InputRow) -> Clocks:
    """Return the clocks that a manifest gives an input.

    Raises:
        CheckpointError: for one that is none.
    """
    try:
        return {Unit(unit): Clock(Fraction(clock["value"]), clock["from"]) for unit, clock in row["clocks"].items()}
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"the manifest's clocks of '{row['name']}' are none: {error}") from error
