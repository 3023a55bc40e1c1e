"""Compare an average that `watch` kept up to date with those of its checkpoints that are still there.

They were folded one after another, each rounded to float32. While all are there, they are averaged anew, and compared
to within that rounding (`watch_rounding`). Where some are gone, no byte of the average follows from those that are
left. But each of these must be what it was, at its clock, and the weights must be those of the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from ema_cli.checkpoint import Checkpoint, Progress
from ema_cli.errors import EmaError, at_terminal
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.types import InputRow, Manifest
from ema_cli.planning.plan import make_plan
from ema_cli.release.clocks import clocks_of, overruled_by, settle_alone, settle_inputs
from ema_cli.release.inputs import find_inputs, open_inputs
from ema_cli.release.verify import Against, Verified
from ema_cli.runs.order import order_units
from ema_cli.runs.run import Run
from ema_cli.runs.specs_only import SpecsOnly
from ema_cli.text import plural, some

ROUNDED = "how watch rounded the values at each checkpoint"
_ROUNDING = 1e-9  # of a weight


def verify_watched(verified: Verified, manifest: Manifest, paths: Sequence[Path], threads: int) -> Verified:
    """Add a problem for each input that has changed or has another clock, and for numbers that do not follow.

    Args:
        verified: the average as `verify` returned it.
        manifest: its manifest.
        paths: the places at and below which the inputs are searched.
        threads: how many read fingerprints.

    Raises:
        CheckpointError: for an input that cannot be read.
    """
    inputs = find_inputs(manifest, paths)
    opened = open_inputs(manifest, inputs.paths) if inputs.paths else []
    rows: dict[str, list[InputRow]] = {}
    for row in manifest["inputs"]:
        rows.setdefault(row["name"], []).append(row)
    problems: list[str] = []
    there: list[Checkpoint] = []
    left: list[InputRow] = []
    for checkpoint, fingerprint in zip(opened, fingerprints(opened, threads), strict=True):
        versions = rows[checkpoint.name]
        same = next((row for row in versions if row["fingerprint"] == fingerprint), None)
        if same is None and len(versions) == 1:
            problems.append(f"{checkpoint.path}: has changed since it was folded: its fingerprint is another")
        if same is not None or len(versions) == 1:  # else the training has written the file over again
            there.append(checkpoint)
            left.append(same or versions[0])
    record = RecipeRecord.from_dict(manifest["recipe"])
    try:
        progress = _settle(there, cast("Manifest", {**manifest, "inputs": left}), record)
        facts = _differences(manifest, record)
    except EmaError as error:
        progress, facts = [], [error.message(at_terminal)]
    problems += [f"{verified.published.manifest}: {fact}" for fact in facts]
    gone = [
        row["name"] if len(rows[row["name"]]) == 1 else f"{row['name']} at {row['clock']}"
        for row in manifest["inputs"]
        if not any(row is other for other in left)
    ]
    are_gone = f"{plural(len(gone), 'input')} that {'is' if len(gone) == 1 else 'are'} gone ({some(gone)})"
    unknown = [are_gone, "tensors and files, which follow from all inputs"]
    sources = [clock.source for each in progress for clock in each.clocks.values()]
    against = Against(len(there), 0, None, 0, 0, 0, overruled=overruled_by(manifest["recipe"], sources))
    return replace(
        verified,
        problems=(*verified.problems, *problems),
        against=against,
        unknown=(*verified.unknown, *unknown),
    )


def _settle(there: Sequence[Checkpoint], left: Manifest, record: RecipeRecord) -> list[Progress]:
    """Return the clocks of what is left, of which alone the manifest tells.

    Raises:
        OtherClock: where the manifest gives another one.
    """
    if not there:
        return []
    # That the first epoch was 0 shows in a checkpoint that may be gone.
    from_zero = replace(record, opened=replace(record.opened, epochs_from_zero=True))
    return settle_inputs(there, left, record, lambda: settle_alone(there, from_zero))


def _differences(manifest: Manifest, record: RecipeRecord) -> list[str]:
    """Return what does not follow from the clocks, in words: weights, and numbers that follow from these."""
    checkpoints = [_stand_in(row) for row in manifest["inputs"]]
    shown = manifest["inputs"][-1]["clock"] if manifest["inputs"] else ""
    units = sorted(order_units(checkpoints), key=lambda unit: not shown.endswith(unit))
    plan = make_plan(Run(Path(), tuple(checkpoints), tuple(units), options=record.opened), record.recipe)
    weights = {entry.checkpoint: entry.weight for entry in plan.entries}
    clocks = {entry.checkpoint: str(entry.clock) for entry in plan.entries}
    wrong = [
        row["name"]
        for row, each in zip(manifest["inputs"], checkpoints, strict=True)
        if not abs(weights.get(each, -1.0) - row["weight"]) <= _ROUNDING or clocks[each] != row["clock"]
    ]
    if wrong:
        law = record.recipe.law.name
        return [f"the weights are not those that {law} gives checkpoints of these clocks ({some(wrong)})"]
    numbers: list[tuple[str, object, object, bool]] = [
        (
            "effective_checkpoints",
            manifest["effective_checkpoints"],
            plan.effective_count,
            abs(manifest["effective_checkpoints"] - plan.effective_count) <= _ROUNDING * plan.effective_count,
        ),
        ("mean_age", manifest["mean_age"], str(plan.mean_age), manifest["mean_age"] == str(plan.mean_age)),
    ]
    return [f"says {name} {ours}, but the weights give {theirs}" for name, ours, theirs, same in numbers if not same]


def _stand_in(row: InputRow) -> Checkpoint:
    name = row["name"]
    return Checkpoint(
        name, Path(name), SpecsOnly({}, {}), (), row["format"], row["trainer"], Progress(dict(clocks_of(row)))
    )
