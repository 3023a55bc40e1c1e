"""The model that a training began with, among the inputs of an average: by a law that needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.types import InputRow, Manifest
from ema_cli.runs.base import SOURCE, at_beginning
from ema_cli.runs.merging import merge_all
from ema_cli.runs.opening import open_by_name
from ema_cli.runs.run import Run


def base_row(manifest: Manifest, record: RecipeRecord) -> InputRow | None:
    """Return the input that is the base and no checkpoint of the run; None where there is no such.

    Raises:
        RunError: where the base that the recipe names is not the first input.
    """
    if record.base is None:
        return None
    first = manifest["inputs"][0] if manifest["inputs"] else None
    if first is None or first["name"] != record.base:
        raise RunError(
            f"the manifest's base, '{record.base[:200]}', is not the first of its inputs",
            hint="it was changed by hand, or by another program",
        )
    return first if all(clock["from"] == SOURCE for clock in first["clocks"].values()) else None


def without(manifest: Manifest, row: InputRow | None) -> Manifest:
    """Return a manifest without one of its inputs."""
    inputs = [other for other in manifest["inputs"] if other is not row]
    return cast("Manifest", {**manifest, "inputs": inputs})


def places_without(places: Sequence[Path], path: Path | None) -> list[Path]:
    """Return the places but for the one that is the base itself."""
    return [place for place in places if path is None or place.absolute() != path.absolute()]


def with_recorded_base(run: Run, row: InputRow | None, paths: Mapping[str, Path], record: RecipeRecord) -> Run:
    """Return the run of the inputs with its base: the one at the path of its row, or else its first checkpoint."""
    if record.base is None:
        return run
    if row is None:
        return replace(run, base=run.checkpoints[0])
    base = at_beginning(_open(row, paths, record), run.units)
    return replace(run, checkpoints=(base, *run.checkpoints), base=base)


def base_alone(row: InputRow | None, paths: Mapping[str, Path], record: RecipeRecord) -> Checkpoint | None:
    """Return the base as it enters, without a run; None where it has no weight, or is a checkpoint of the run.

    Raises:
        CheckpointError: where it cannot be read.
    """
    if row is None or row["weight"] == 0:
        return None
    base, model = at_beginning(_open(row, paths, record), ()), record.opened.merge_into
    if model is None:
        return base
    (merged,) = merge_all([base], model, base)
    return merged


def _open(row: InputRow, paths: Mapping[str, Path], record: RecipeRecord) -> Checkpoint:
    (opened,) = open_by_name({row["name"]: paths[row["name"]]}, record.opened.read)
    return opened
