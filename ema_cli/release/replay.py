"""Repeat an average from its manifest: the same inputs, found below a given path, with the same weights.

Everything that decides the bytes comes from the manifest, including names and weights, so that later checkpoints and
moved files change nothing. But it must be true: the clocks are those that the checkpoints give by the recipe's options,
and the weights those that the law gives checkpoints of these clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath

from ema_cli._version import __version__
from ema_cli.checkpoint import Progress
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, RunError, VerificationError, option
from ema_cli.law.recipe import Recipe
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.types import InputRow, Manifest
from ema_cli.planning.entry import Entry
from ema_cli.planning.plan import Approximation, Plan, make_plan
from ema_cli.release.around import Around, open_around
from ema_cli.release.base import base_alone, base_row, places_without, with_recorded_base, without
from ema_cli.release.clocks import settle_inputs
from ema_cli.release.inputs import check_unchanged, find_inputs, open_inputs
from ema_cli.runs.order import order_units
from ema_cli.runs.run import Run, merged_run
from ema_cli.runs.warnings import Remarks
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import Target, default_target

_ROUNDING = 1e-12  # tolerance for a weight: the logarithm of another processor may round differently
# Tolerances for the error of stored averages: for each unit of the weights, which large ones multiply, and of itself.
_ERROR_ROUNDING, _ERROR_SHARE = 1e-7, 1e-3
_TENSOR_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".distcp")


@dataclass(frozen=True, slots=True)
class Replay:
    """The plan of an average, rebuilt from its manifest, and the options of its output.

    Attributes:
        paths: those of the inputs, by name.
        remarks_around: what is said of the run at the given paths; None where nobody asked, and where that
            does not hold the inputs.
    """

    manifest: Manifest
    plan: Plan
    options: OutputOptions
    paths: Mapping[str, Path]
    remarks_around: Remarks | None = None

    @property
    def target(self) -> Target:
        """Return the default target: a file or folder as the original was, named after the law."""
        recipe = self.manifest["recipe"]
        if self.options.like_input:
            return default_target([self.plan], like_input=True)
        suffix = "" if recipe["folder"] else f".{recipe['format']}"
        path = Path(f"ema-{self.plan.recipe.law.name}{suffix}")
        return Target(path, is_folder=recipe["folder"], is_dcp=recipe["format"] == "dcp")

    @property
    def checksum(self) -> bool:
        """Return whether the original average recorded checksums of all bytes read."""
        return self.manifest["checksum"] is not None

    @property
    def remarks(self) -> Remarks:
        """Return what was said of the run, of which this plan has only the checkpoints that entered."""
        return Remarks(tuple(self.manifest["warnings"]), tuple(self.manifest.get("notes", ())))

    def check(self, again: Manifest) -> None:
        """Compare the manifest of the repeated average with the original one.

        Raises:
            CheckpointError: if an input has other checksums than were recorded.
            VerificationError: if the output files have other checksums than were recorded.
        """
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
        if "watch" in self.manifest:
            return  # folded one after another, which rounds otherwise
        if _byte_key(again) == _byte_key(self.manifest) and _tensor_sums(again) != _tensor_sums(self.manifest):
            raise VerificationError(
                "the inputs are found again, but their average has other bytes than the manifest says: one has changed "
                "where its fingerprint does not look",
                hint="bring back the checkpoints as they were; a manifest made with "
                f"{option('checksum', True)} tells which has changed",
            )


def open_replay(
    manifest: Manifest,
    paths: Sequence[Path],
    *,
    merge_into: Path | None = None,
    threads: int = 1,
    with_remarks: bool = False,
) -> Replay:
    """Find the inputs of an average at and below `paths`, and check that they are unchanged.

    Args:
        manifest: that of the average.
        paths: where the inputs lie.
        merge_into: the base model, of an average of adapters that were merged into it.
        threads: how many read fingerprints.
        with_remarks: also look at all of the run there, for `remarks_around`.

    Raises:
        UsageError: where a base model is given and not needed, or needed and not given.
        CheckpointError: naming the input that is missing, has changed, or cannot be read.
        RunError: if the weights of the manifest do not follow from the law that it names, or it lists an input twice.
    """
    record = RecipeRecord.from_dict(manifest["recipe"], merge_into)
    inputs = find_inputs(manifest, paths)
    if inputs.missing:
        raise CheckpointError(
            f"'{inputs.missing[0]}', which entered the average, is missing",
            subject=", ".join(map(str, paths)),
            hint=f"name the model that the training began with, too: {paths[0]} MODEL"
            if inputs.missing[0] == record.base
            else "give the folder that the inputs lie in",
        )
    if len(inputs.paths) < len(manifest["inputs"]) and "watch" in manifest:
        raise RunError(
            "watch folded several versions of one file, and no more than one of them is left",
            hint="verify compares what is left; average what is there without its recipe",
        )
    if len(inputs.paths) < len(manifest["inputs"]):
        raise RunError("the manifest lists an input twice", hint="it was changed by hand, or by another program")
    remarks: Remarks | None = None
    if record.is_stored:
        plan, remarks = _stored_plan(manifest, record.recipe, paths)
    else:
        base = base_row(manifest, record)
        own = without(manifest, base)["inputs"]
        around_paths = places_without(paths, inputs.paths[base["name"]] if base else None)

        @cache
        def look_around() -> Around | None:
            if not around_paths:
                return None
            began = base_alone(base, inputs.paths, record)
            return open_around(around_paths, record, own, [inputs.paths[row["name"]] for row in own], began)

        if with_remarks and (around := look_around()) is not None:
            remarks = around.remarks
        plan = _raw_plan(manifest, record, inputs.paths, look_around)
    check_unchanged(manifest, [entry.checkpoint for entry in plan.read], threads)
    return Replay(manifest, plan, OutputOptions.from_dict(manifest["recipe"]), inputs.paths, remarks)


def _raw_plan(
    manifest: Manifest, record: RecipeRecord, inputs: Mapping[str, Path], look_around: Callable[[], Around | None]
) -> Plan:
    def in_run() -> Sequence[Progress] | None:
        around = look_around()
        return None if around is None else around.progress

    base = base_row(manifest, record)
    own = without(manifest, base)
    opened = open_inputs(own, {row["name"]: inputs[row["name"]] for row in own["inputs"]})
    settled = settle_inputs(opened, own, record, in_run)
    checkpoints = tuple(
        replace(checkpoint, progress=progress) for checkpoint, progress in zip(opened, settled, strict=True)
    )
    # The clocks in the plan are in the unit that the run was ordered by, which these checkpoints alone need not show.
    shown = manifest["inputs"][-1]["clock"] if manifest["inputs"] else ""
    units = sorted(order_units(checkpoints), key=lambda unit: not shown.endswith(unit))
    run = Run(_root(own["inputs"], inputs), checkpoints, tuple(units), options=record.opened)
    run = with_recorded_base(run, base, inputs, record)
    if record.opened.merge_into is not None:
        run = merged_run(run, record.opened.merge_into)
    plan = make_plan(run, record.recipe)
    same = len(plan.entries) == len(run.checkpoints) and all(
        entry.checkpoint is checkpoint
        and str(entry.clock) == row["clock"]
        and abs(entry.weight - row["weight"]) <= _ROUNDING
        for entry, checkpoint, row in zip(plan.entries, run.checkpoints, manifest["inputs"], strict=False)
    )
    if not same:
        raise RunError(
            f"the manifest's weights are not those that {record.recipe.law.name} gives checkpoints of these clocks",
            hint=f"it was changed by hand, or by another program; average anew, with {option('half_life')}",
        )
    return replace(plan, entries=_with_weights(plan.entries, manifest["inputs"]))


def _stored_plan(manifest: Manifest, recipe: Recipe, paths: Sequence[Path]) -> tuple[Plan, Remarks]:
    """Return the plan over stored averages, with the recorded weights, and what is said of all that is stored.

    The fit that found the weights is not repeated. But their sum must be 1, and the error that is recorded the one that
    they have by the headers of what is stored.
    """
    from ema_cli.planning.stored_plan import judge_stored
    from ema_cli.runs.stored import open_stored

    recorded = manifest["recipe"]
    stored = open_stored(paths, copy=recorded["copy"], component=recorded["component"])
    named = {average.checkpoint.name: average for average in stored.averages}
    missing = next((row["name"] for row in manifest["inputs"] if row["name"] not in named), None)
    if missing is not None:
        raise CheckpointError(f"'{missing}', which entered the average, is missing", subject=stored.root)
    chosen = [named[row["name"]] for row in manifest["inputs"]]
    clocks = [Fraction(average.clock.value) for average in chosen]
    gaps = [Fraction(0), *(newer - older for older, newer in pairwise(clocks))]
    entries = tuple(
        Entry(average.checkpoint, average.clock, gap, row["weight"])
        for average, gap, row in zip(chosen, gaps, manifest["inputs"], strict=True)
    )
    recorded_errors = manifest["approximation"]
    if recorded_errors is None:
        raise _untrue("gives stored averages, but not how far they are off")
    recorded_error, least = float(recorded_errors["relative_error"]), float(recorded_errors["least_error"])
    weights = {row["name"]: row["weight"] for row in manifest["inputs"]}
    _check_errors(weights, recorded_error, least, judge_stored(stored, recipe, weights))
    remarks = Remarks.of(stored.run, [entry.checkpoint for entry in entries if entry.weight])
    run = replace(stored.run, passed_over=())
    approximation = Approximation(recorded_error, least, {}, (), (), ())
    return Plan(run, recipe, entries, (), approximation=approximation), remarks


def _check_errors(weights: Mapping[str, float], recorded: float, least: float, errors: Iterator[float]) -> None:
    """Check the sum of the weights of stored averages, and the errors that are recorded of them.

    Args:
        weights: those that are recorded.
        recorded, least: the recorded error, and the least that any weights could have.
        errors: what the error can be with these weights; first that at the newest of what entered.

    Raises:
        RunError: where they are not true.
    """
    size = sum(map(abs, weights.values()))
    if not abs(sum(weights.values()) - 1) <= _ROUNDING * (1 + size):
        raise _untrue(f"gives weights with the sum {sum(weights.values()):.6g}, not 1")
    rounding, first = _ERROR_ROUNDING * (1 + size), next(errors)
    if not any(abs(error - recorded) <= rounding + _ERROR_SHARE * error for error in chain([first], errors)):
        raise _untrue(f"says that the average is {recorded:.4%} off, but with these weights it is {first:.4%}")
    if not 0 <= least <= recorded * (1 + _ERROR_SHARE) + rounding:
        raise _untrue(f"says that the least error is {least:.4%}, and that of its weights {recorded:.4%}")


def _untrue(fact: str) -> RunError:
    """Return the error for a manifest that what is stored shows to be wrong."""
    return RunError(f"the manifest {fact}", hint="it was changed by hand, or by another program; average anew")


def _with_weights(entries: Sequence[Entry], inputs: Sequence[InputRow]) -> tuple[Entry, ...]:
    return tuple(replace(entry, weight=row["weight"]) for entry, row in zip(entries, inputs, strict=True))


def _root(rows: Sequence[InputRow], paths: Mapping[str, Path]) -> Path:
    name = rows[0]["name"]
    path = paths[name]
    depth = len(PurePosixPath(name).parts)
    return path.absolute().parents[depth - 1]


def _byte_key(manifest: Manifest) -> tuple[object, ...]:
    """Return the facts that must agree before equal inputs have to give equal bytes: versions, format, folder."""
    return __version__, manifest["tool"]["version"], manifest["recipe"]["format"], manifest["recipe"]["folder"]


def _tensor_sums(manifest: Manifest) -> list[str]:
    """Return the checksums of the files that hold tensors, without their names, which may differ."""
    every = manifest["recipe"].get("like_input", False)
    return [row["sha256"] for row in manifest["outputs"] if every or row["name"].endswith(_TENSOR_SUFFIXES)]
