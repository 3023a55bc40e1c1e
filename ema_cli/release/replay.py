"""Repeat an average as its manifest says: the same inputs, found below a path that is given, with the same weights.

What decides the bytes comes from the manifest: names, clocks and weights too, so that neither later checkpoints nor
files that were moved change anything. The clocks must give the weights by the law that the manifest names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePosixPath

from ema_cli._version import __version__
from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, RunError, VerificationError, option
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Unit
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.types import InputRow, Manifest, RecipeRow
from ema_cli.planning.entry import Entry
from ema_cli.planning.plan import Approximation, Plan, make_plan
from ema_cli.release.inputs import check_unchanged, find_inputs, open_inputs
from ema_cli.runs.clocks import order_units
from ema_cli.runs.run import Run
from ema_cli.writing.outputs import OutputOptions
from ema_cli.writing.target import Target

_RECORDED = ("file", "sidecar")  # where clocks come from that are the checkpoint's own
_ROUNDING = 1e-12  # of a weight that another processor's logarithm gives
_MOST_TOLD = 3
_WEIGHTS = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Replay:
    """What an average was made of, found again: its plan, and what was said of the output."""

    manifest: Manifest
    plan: Plan
    options: OutputOptions
    paths: Mapping[str, Path]  # of each input, by its name

    @property
    def target(self) -> Target:
        """Return where the average goes if nobody says: as it was written, under the name of its law."""
        recipe = self.manifest["recipe"]
        suffix = "" if recipe["folder"] else f".{recipe['format']}"
        return Target(Path(f"ema-{self.plan.recipe.law.name}{suffix}"), is_folder=recipe["folder"])

    @property
    def checksum(self) -> bool:
        """Return whether all that was read was summed up."""
        return self.manifest["checksum"] is not None

    def check(self, again: Manifest) -> None:
        """Raise a CheckpointError if the inputs, or else a VerificationError if the weights, are not as recorded."""
        kind, rows = self.manifest["checksum"], {row["name"]: row for row in again["inputs"]}
        for row in self.manifest["inputs"]:
            recorded, now = row.get("blocks"), rows[row["name"]].get("blocks")
            if kind is not None and recorded is not None and now is not None and recorded != now:
                pairs = zip(recorded, now, strict=False)
                first = next((number for number, (one, other) in enumerate(pairs) if one != other), len(now))
                raise CheckpointError(
                    f"has changed since it was averaged: block {first} (of {kind['block_bytes']} bytes) "
                    "of its weights has another sum",
                    subject=self.paths[row["name"]],
                    hint="bring back the checkpoint as it was",
                )
        if _made_by(again) == _made_by(self.manifest) and _weights(again) != _weights(self.manifest):
            raise VerificationError(
                "the inputs are found again, but their average has other bytes than the manifest says: one has changed "
                "where its fingerprint does not look",
                hint="bring back the checkpoints as they were; a manifest made with "
                f"{option('checksum', True)} tells which has changed",
            )


def open_replay(manifest: Manifest, paths: Sequence[Path], *, threads: int = 1) -> Replay:
    """Find the inputs of an average at and below `paths`, and check that they are the same.

    Raises:
        CheckpointError: naming the input that is missing, has changed, or cannot be read.
        RunError: where the weights of the manifest are not those of the law that it names, or an input is there twice.
    """
    record = RecipeRecord.from_dict(manifest["recipe"])
    found = find_inputs(manifest, paths)
    if found.missing:
        raise CheckpointError(
            f"'{found.missing[0]}', which entered the average, is missing",
            subject=", ".join(map(str, paths)),
            hint="give the folder that the inputs lie in",
        )
    if len(found.paths) < len(manifest["inputs"]):
        raise RunError("the manifest lists an input twice", hint="it was changed by hand, or by another program")
    if record.is_stored:
        plan = _stored_plan(manifest, record.recipe, paths)
    else:
        plan = _raw_plan(manifest, record, found.paths)
    check_unchanged(manifest, [entry.checkpoint for entry in plan.read], threads)
    return Replay(manifest, plan, _options(manifest["recipe"]), found.paths)


def _raw_plan(manifest: Manifest, record: RecipeRecord, paths: Mapping[str, Path]) -> Plan:
    opened = open_inputs(manifest, paths)
    _check_clocks(opened, manifest["inputs"])
    checkpoints = tuple(
        replace(checkpoint, progress=_progress(each))
        for checkpoint, each in zip(opened, manifest["inputs"], strict=True)
    )
    run = Run(
        _root(paths),
        checkpoints,
        order_units(checkpoints),
        options=record.read,
        epoch_length=record.epoch_length,
        spacing=record.spacing,
    )
    plan = make_plan(run, record.recipe)
    same = len(plan.entries) == len(checkpoints) and all(
        entry.checkpoint is checkpoint
        and str(entry.clock) == each["clock"]
        and abs(entry.weight - each["weight"]) <= _ROUNDING
        for entry, checkpoint, each in zip(plan.entries, checkpoints, manifest["inputs"], strict=False)
    )
    if not same:
        raise RunError(
            f"the manifest's weights are not those that {record.recipe.law.name} gives checkpoints of these clocks",
            hint=f"it was changed by hand, or by another program; average anew, with {option('half_life')}",
        )
    return replace(plan, entries=_with_weights(plan.entries, manifest["inputs"]))


def _check_clocks(opened: Sequence[Checkpoint], inputs: Sequence[InputRow]) -> None:
    """Check that clocks that lie in or beside a checkpoint are as they were; where the run decides, it did."""
    for checkpoint, told in zip(opened, inputs, strict=True):
        found = checkpoint.progress
        for unit, clock in _progress(told).clocks.items():
            settled = unit is Unit.EPOCH and found.epoch_origin_unknown
            if clock.source not in _RECORDED or settled:
                continue
            now = found.clocks.get(unit)
            if now is None or now.value != clock.value:
                told_now = f"{now.value}{unit}" if now else "none"
                raise CheckpointError(
                    f"its clock is {told_now}, but was {clock.value}{unit} when it was averaged",
                    subject=checkpoint.path,
                    hint="bring back the checkpoint as it was",
                )


def _stored_plan(manifest: Manifest, recipe: Recipe, paths: Sequence[Path]) -> Plan:
    """Return the plan over stored averages: their weights were found by a fit, which is not made again."""
    from ema_cli.runs.stored import open_stored

    stored = open_stored(paths)
    named = {average.checkpoint.name: average for average in stored.averages}
    missing = next((each["name"] for each in manifest["inputs"] if each["name"] not in named), None)
    if missing is not None:
        raise CheckpointError(f"'{missing}', which entered the average, is missing", subject=stored.root)
    chosen = [named[each["name"]] for each in manifest["inputs"]]
    clocks = [Fraction(each.clock.value) for each in chosen]
    gaps = [Fraction(0), *(newer - older for older, newer in pairwise(clocks))]
    entries = tuple(
        Entry(each.checkpoint, each.clock, gap, told["weight"])
        for each, gap, told in zip(chosen, gaps, manifest["inputs"], strict=True)
    )
    told = manifest["approximation"] or {"relative_error": 0, "least_error": 0}
    errors = float(told["relative_error"]), float(told["least_error"])
    return Plan(stored.run, recipe, entries, (), approximation=Approximation(*errors, {}, (), (), ()))


def _with_weights(entries: Sequence[Entry], inputs: Sequence[InputRow]) -> tuple[Entry, ...]:
    return tuple(replace(entry, weight=row["weight"]) for entry, row in zip(entries, inputs, strict=True))


def _options(told: RecipeRow) -> OutputOptions:
    dtype = DTYPES[told["dtype"]] if told["dtype"] else None
    return OutputOptions(dtype, tuple(told["copy"]), told["max_shard_size"], told["allow_non_finite"])


def _progress(told: InputRow) -> Progress:
    """Return the clocks as they were, whatever the run around the checkpoint is now."""
    try:
        clocks = {Unit(unit): Clock(Fraction(each["value"]), each["from"]) for unit, each in told["clocks"].items()}
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"the manifest's clocks of '{told['name']}' are none: {error}") from error
    return Progress(clocks)


def _root(paths: Mapping[str, Path]) -> Path:
    name, path = next(iter(paths.items()))
    depth = len(PurePosixPath(name).parts)
    return path.absolute().parents[depth - 1]


def _made_by(manifest: Manifest) -> tuple[object, ...]:
    """Return what decides whether equal inputs give equal bytes."""
    return __version__, manifest["tool"]["version"], manifest["recipe"]["format"], manifest["recipe"]["folder"]


def _weights(manifest: Manifest) -> list[str]:
    """Return the sums of the files of weights, which may have other names."""
    return [each["sha256"] for each in manifest["outputs"] if each["name"].endswith(_WEIGHTS)]
