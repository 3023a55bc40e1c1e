"""Compare an average that `watch` kept up to date with those of its checkpoints that are still there.

They were folded one after another, each rounded to float32, and most may be gone: no byte of the average follows from
those that are left. But each must be what it was, and the weights must be those of the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.errors import EmaError, at_terminal
from ema_cli.law.time import Unit
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.types import InputRow, Manifest
from ema_cli.planning.plan import make_plan
from ema_cli.release.inputs import find_inputs, open_inputs
from ema_cli.release.verify import Against, Verified
from ema_cli.runs.order import order_units
from ema_cli.runs.run import Run
from ema_cli.runs.specs_only import SpecsOnly
from ema_cli.text import plural, some

_ROUNDING = 1e-9  # of a weight


def verify_watched(verified: Verified, manifest: Manifest, paths: Sequence[Path], threads: int) -> Verified:
    """Add a problem for each input that has changed, and for weights that are not those of the law.

    Args:
        verified: the average as `verify` returned it.
        manifest: its manifest.
        paths: the places at and below which the inputs are searched.
        threads: how many read fingerprints.

    Raises:
        CheckpointError: for an input that cannot be read.
    """
    inputs = find_inputs(manifest, paths)
    there = open_inputs(manifest, inputs.paths) if inputs.paths else []
    rows = {row["name"]: row for row in manifest["inputs"]}
    problems = [
        f"{checkpoint.path}: has changed since it was folded: its fingerprint is another"
        for checkpoint, fingerprint in zip(there, fingerprints(there, threads), strict=True)
        if fingerprint != rows[checkpoint.name]["fingerprint"]
    ]
    problems += [f"{verified.published.manifest}: {fact}" for fact in _weight_problems(manifest)]
    gone = inputs.missing
    unknown = [
        *(
            [f"{plural(len(gone), 'input')} that {'is' if len(gone) == 1 else 'are'} gone ({some(gone)})"]
            if gone
            else []
        ),
        "the values, which watch rounded at each checkpoint",
    ]
    against = Against(len(there), 0, None, 0, 0, 0)
    return replace(
        verified,
        problems=(*verified.problems, *problems),
        against=against,
        unknown=(*verified.unknown, *unknown),
    )


def _weight_problems(manifest: Manifest) -> list[str]:
    """Return what is wrong with the weights, in words."""
    checkpoints = [_stand_in(row) for row in manifest["inputs"]]
    record = RecipeRecord.from_dict(manifest["recipe"])
    shown = manifest["inputs"][-1]["clock"] if manifest["inputs"] else ""
    units = sorted(order_units(checkpoints), key=lambda unit: not shown.endswith(unit))
    try:
        plan = make_plan(Run(Path(), tuple(checkpoints), tuple(units), options=record.opened), record.recipe)
    except EmaError as error:
        return [error.message(at_terminal)]
    weights = {entry.checkpoint.name: entry.weight for entry in plan.entries}
    wrong = [
        row["name"]
        for row in manifest["inputs"]
        if not abs(weights.get(row["name"], -1.0) - row["weight"]) <= _ROUNDING
    ]
    if not wrong:
        return []
    return [
        f"the weights are not those that {record.recipe.law.name} gives checkpoints of these clocks ({some(wrong)})"
    ]


def _stand_in(row: InputRow) -> Checkpoint:
    clocks = {Unit(unit): Clock(Fraction(clock["value"]), clock["from"]) for unit, clock in row["clocks"].items()}
    name = row["name"]
    return Checkpoint(name, Path(name), SpecsOnly({}, {}), (), row["format"], row["trainer"], Progress(clocks))
