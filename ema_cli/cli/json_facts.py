"""Runs, plans and results as plain data: what `--json` prints, and what the tables are drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.law.recipe import law_to_dict
from ema_cli.law.time import Time, Unit, interval_text
from ema_cli.planning.plan import Approximation, Plan
from ema_cli.runs.run import Run
from ema_cli.runs.same_model import first_differences
from ema_cli.runs.spacing import measure_spacing
from ema_cli.runs.warnings import _by_specs

if TYPE_CHECKING:
    from ema_cli.averaging import Result
    from ema_cli.job import Work  # which import numpy: not for `inspect`
    from ema_cli.runs.stored import StoredRun


def run_facts(run: Run, *, stored: bool = False) -> dict[str, Any]:
    """Return what is known of a run without a plan; of `stored` averages, several have one clock by nature."""
    common = _common_specs(run.checkpoints)
    return {
        "path": (run.checkpoints[0].path if len(run.checkpoints) == 1 else run.root).as_posix(),
        "checkpoints": [
            checkpoint_facts(each, sizes)
            for each, sizes in zip(run.checkpoints, _by_specs(run.checkpoints, _sizes), strict=True)
        ],
        "units": [str(unit) for unit in run.units],
        "spacing": None if stored else _spacing_facts(run),
        "tensors": tensor_totals(common),
        "differences": first_differences(run.checkpoints) if run.checkpoints else [],
        "same_clock": [] if stored else [[each.name for each in group] for group in run.twins()],
        "passed_over": [{"name": each.name, "reason": each.reason} for each in run.passed_over],
        "notes": list(run.notes),
    }


def checkpoint_facts(checkpoint: Checkpoint, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of one checkpoint, with the `sizes` of its tensors."""
    return {
        "name": checkpoint.name,
        "format": checkpoint.format,
        "trainer": checkpoint.trainer,
        "clocks": {
            str(unit): {"value": number(clock.value), "from": clock.source}
            for unit, clock in sorted(checkpoint.progress.clocks.items())
        },
        **sizes,
        "averaged_already": checkpoint.averaged,
        "notes": list(checkpoint.notes),
    }


def tensor_facts(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the tensors of one checkpoint."""
    return [
        {"name": name, "dtype": spec.dtype.name, "shape": list(spec.shape), "bytes": spec.nbytes}
        for name, spec in checkpoint.tensors.specs.items()
    ]


def tensor_totals(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Return how many tensors there are, how many floating and how many packed, their parameters and bytes."""
    return {
        "count": len(specs),
        "averaged": sum(spec.dtype.averaged for spec in specs.values()),
        "packed": sum(spec.dtype.kind == "packed" for spec in specs.values()),
        "parameters": sum(spec.count for spec in specs.values()),
        "bytes": sum(spec.nbytes for spec in specs.values()),
    }


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return the weights and what they come to."""
    recipe = plan.recipe
    advice = plan.advice
    enough = advice.half_life_for_three
    return {
        **law_to_dict(recipe.law),
        "from": "raw" if plan.approximation is None else "stored",
        "update_interval": interval_text(recipe.interval),
        "bias_correction": recipe.bias_correction,
        "entries": [
            {"name": each.checkpoint.name, "clock": str(each.clock), "weight": each.weight} for each in plan.entries
        ],
        "skipped": [{"name": each.checkpoint.name, "reason": each.reason} for each in plan.skipped],
        "effective_checkpoints": plan.effective_count,
        "mean_age": {"value": number(plan.mean_age.value), "unit": str(plan.mean_age.unit)},
        "half_life_for_three": str(enough) if enough else None,
        "newest_is_heavy": advice.newest_is_heavy,
        "half_lives_to_store": [str(each) for each in advice.half_lives_to_store],
        "warnings": advice.warnings,
        "approximation": _approximation_facts(plan.approximation) if plan.approximation else None,
    }


def _approximation_facts(approximation: Approximation) -> dict[str, Any]:
    return {
        "relative_error": approximation.error,
        "reach": [
            {"within": within, "half_lives": [[str(low), str(high)] for low, high in ranges]}
            for within, ranges in approximation.reach.items()
        ],
        "stretches": [
            {"from": begin, "to": end, "asked": asked, "reached": reached}
            for (begin, end), asked, reached in zip(
                approximation.stretches, approximation.asked, approximation.reached, strict=True
            )
        ],
    }


def stored_facts(stored: StoredRun) -> dict[str, Any]:
    """Return what averages a training stored."""
    names = dict.fromkeys(each.checkpoint.path.stem for each in stored.averages if each.law is not None)
    clocks = dict.fromkeys(str(each.clock) for each in stored.averages if each.law is not None)
    return {
        "path": stored.root.as_posix(),
        "averages": list(names),
        "clocks": list(clocks),
        "first_copy": any(each.law is None for each in stored.averages),
    }


def work_facts(work: Work, memory: int) -> dict[str, Any]:
    """Return what would be read and written, in about how much `memory`, and how much room the disk has; in bytes."""
    return {
        "path": work.target.path.as_posix(),
        "outputs": [
            {
                "path": output.target.path.as_posix(),
                "files": sorted([*(file.name for file in output.files), *output.texts, *output.copies]),
                "bytes": output.nbytes,
            }
            for output in work.outputs
        ],
        "bytes_to_read": work.bytes_to_read,
        "bytes_to_write": work.bytes_to_write,
        "bytes_free": work.bytes_free,
        "memory_bytes": memory,
    }


def result_facts(result: Result) -> dict[str, Any]:
    """Return what was written."""
    return {
        "path": result.target.path.as_posix(),
        "outputs": [{"path": each.target.path.as_posix(), "bytes": each.nbytes} for each in result.outputs],
        "tensors_averaged": result.tensors_averaged,
        "tensors_copied": result.tensors_copied,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "seconds": round(result.seconds, 3),
        "bytes_per_second": round(result.bytes_read / max(result.seconds, 1e-3)),
        "peak_memory_bytes": result.peak_memory,
        "non_finite": list(result.non_finite),
    }


def number(value: Fraction | float) -> int | float:
    """Return an exact number as JSON has it."""
    return int(value) if value == int(value) else float(value)


def _sizes(specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    return {
        "bytes": sum(spec.nbytes for spec in specs.values()),
        "dtypes": dict(sorted(Counter(spec.dtype.name for spec in specs.values()).items())),
    }


def _common_specs(checkpoints: Sequence[Checkpoint]) -> Mapping[str, TensorSpec]:
    """Return the tensors that all checkpoints have with one spec."""
    if not checkpoints:
        return {}
    newest = checkpoints[-1].tensors.specs
    others = [each.tensors.specs for each in checkpoints if each.tensors.specs is not newest]
    return {name: spec for name, spec in newest.items() if all(specs.get(name) == spec for specs in others)}


def _spacing_facts(run: Run) -> dict[str, Any] | None:
    """Return the usual distance between neighbours, and where it is half as much again or more."""
    if not run.units:
        return None
    unit: Unit = run.units[0]
    spacing = measure_spacing([checkpoint.clock(unit) or Fraction(0) for checkpoint in run.checkpoints])
    if spacing is None:
        return None
    names = [checkpoint.name for checkpoint in run.checkpoints]
    gaps = [
        {"after": names[gap.older], "before": names[gap.newer], "length": str(Time(gap.length, unit))}
        for gap in spacing.gaps
    ]
    return {"usual": str(Time(spacing.usual, unit)), "regular": spacing.regular, "gaps": gaps}
