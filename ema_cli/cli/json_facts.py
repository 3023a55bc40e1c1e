"""What --json prints: the one place where views become dictionaries."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING

from ema_cli.errors import EmaError, at_terminal
from ema_cli.law.recipe import law_to_dict
from ema_cli.law.time import interval_text

if TYPE_CHECKING:  # each command loads what it shows
    from ema_cli.checkpoint import Checkpoint
    from ema_cli.cli.outcomes import Averaged, DryRun
    from ema_cli.cli.views import Inspection, RunView, Sizes, StoredView
    from ema_cli.planning.plan import Approximation, Plan
    from ema_cli.result import Result

Facts = dict[str, object]


def inspection_facts(inspection: Inspection) -> Facts:
    """Return what `inspect` shows, all but an error."""
    single = inspection.single
    return {
        "run": run_facts(inspection.view),
        "plans": [plan_facts(plan) for plan in inspection.plans],
        "stored": stored_facts(inspection.stored) if inspection.stored else None,
        **({"tensors": tensor_facts(single), "recipe": single.mark} if single else {}),
        "warnings": list(inspection.remarks.warnings),
        "notes": list(inspection.remarks.notes),
    }


def run_facts(view: RunView) -> Facts:
    """Return what is known of a run without a plan."""
    run, spacing = view.run, view.spacing
    return {
        "path": view.path,
        "checkpoints": [
            checkpoint_facts(checkpoint, sizes) for checkpoint, sizes in zip(run.checkpoints, view.sizes, strict=True)
        ],
        "units": [str(unit) for unit in run.units],
        "spacing": {
            "usual": str(spacing.usual),
            "regular": spacing.regular,
            "gaps": [{"after": gap.after, "before": gap.before, "length": str(gap.length)} for gap in spacing.gaps],
        }
        if spacing
        else None,
        "tensors": {
            "count": view.tensors.count,
            "averaged": view.tensors.averaged,
            "packed": view.tensors.packed,
            "parameters": view.tensors.parameters,
            "bytes": view.tensors.nbytes,
        },
        "differences": list(view.differences),
        "same_clock": [list(group) for group in view.same_clock],
        "passed_over": [{"name": passed.name, "reason": passed.reason} for passed in run.passed_over],
        "warnings": list(run.warnings),
        "notes": list(run.notes),
    }


def checkpoint_facts(checkpoint: Checkpoint, sizes: Sizes) -> Facts:
    """Return what is known of one checkpoint."""
    return {
        "name": checkpoint.name,
        "format": checkpoint.format,
        "trainer": checkpoint.trainer,
        "clocks": {
            str(unit): {"value": number(clock.value), "from": clock.source}
            for unit, clock in sorted(checkpoint.progress.clocks.items())
        },
        "bytes": sizes.nbytes,
        "dtypes": dict(sizes.dtypes),
        "averaged_already": checkpoint.averaged,
        "warnings": list(checkpoint.warnings),
        "notes": list(checkpoint.notes),
    }


def tensor_facts(checkpoint: Checkpoint) -> list[Facts]:
    """Return the tensors of one checkpoint."""
    return [
        {"name": name, "dtype": spec.dtype.name, "shape": list(spec.shape), "bytes": spec.nbytes}
        for name, spec in checkpoint.tensors.specs.items()
    ]


def plan_facts(plan: Plan) -> Facts:
    """Return the weights and what they come to."""
    recipe, advice = plan.recipe, plan.advice
    enough = advice.half_life_for_three
    return {
        **law_to_dict(recipe.law),
        "from": "raw" if plan.approximation is None else "stored",
        "update_interval": interval_text(recipe.interval),
        "bias_correction": recipe.bias_correction,
        "clock": str(plan.entries[-1].clock),
        "entries": [
            {"name": entry.checkpoint.name, "clock": str(entry.clock), "weight": entry.weight} for entry in plan.entries
        ],
        "skipped": [
            *({"name": passed.name, "reason": passed.reason} for passed in plan.run.passed_over if passed.excluded),
            *({"name": skipped.checkpoint.name, "reason": skipped.reason} for skipped in plan.skipped),
        ],
        "effective_checkpoints": plan.effective_count,
        "mean_age": {"value": number(plan.mean_age.value), "unit": str(plan.mean_age.unit)},
        "half_life_for_three": str(enough) if enough else None,
        "newest_is_heavy": advice.newest_is_heavy,
        "half_lives_to_store": [str(half_life) for half_life in advice.half_lives_to_store],
        "warnings": advice.warnings,
        "approximation": _approximation_facts(plan.approximation) if plan.approximation else None,
    }


def _approximation_facts(approximation: Approximation) -> Facts:
    return {
        "relative_error": approximation.error,
        "rounding_error": approximation.rounding,
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


def stored_facts(view: StoredView) -> Facts:
    """Return what averages a training stored, and what they would make."""
    stored = view.run
    if isinstance(stored, EmaError):
        return {"problem": stored.message(at_terminal)}
    return {
        "path": stored.root.as_posix(),
        "averages": stored.names,
        "clocks": stored.clocks,
        "first_copy": stored.has_first_copy,
        "plans": [
            {"law": recipe.law.name, "problem": plan.message(at_terminal)}
            if isinstance(plan, EmaError)
            else plan_facts(plan)
            for recipe, plan in view.plans
        ],
    }


def dry_run_facts(dry: DryRun) -> Facts:
    """Return the plans, what would be read and written, and how much room there is; in bytes."""
    job = dry.job
    would_write = {
        "path": job.target.path.as_posix(),
        "outputs": [
            {
                "path": output.target.path.as_posix(),
                "files": sorted([*(file.name for file in output.files), *output.texts, *output.copies]),
                "bytes": output.nbytes,
            }
            for output in job.outputs
        ],
        "passes": len(dry.passes),
        "bytes_to_read": dry.bytes_to_read,
        "bytes_to_write": job.bytes_to_write,
        "bytes_free": dry.bytes_free,
        "memory_bytes": dry.memory,
    }
    plans = [plan_facts(plan) for plan in job.plans]
    return {"plans": plans, "would_write": would_write, **_remarks_facts(dry.remarks.warnings, dry.remarks.notes)}


def averaged_facts(averaged: Averaged, warnings: Iterable[str]) -> Facts:
    """Return the plans, and what was written."""
    plans = [plan_facts(plan) for plan in averaged.plans]
    written = _result_facts(averaged.result)
    return {"plans": plans, "written": written, **_remarks_facts(warnings, averaged.remarks.notes)}


def _remarks_facts(warnings: Iterable[str], notes: Iterable[str]) -> Facts:
    return {"warnings": list(warnings), "notes": list(notes)}


def _result_facts(result: Result) -> Facts:
    return {
        "path": result.target.path.as_posix(),
        "outputs": [{"path": output.target.path.as_posix(), "bytes": output.nbytes} for output in result.outputs],
        "signed": result.signed,
        "tensors_averaged": result.tensors_averaged,
        "tensors_copied": result.tensors_copied,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "seconds": round(result.seconds, 3),
        "bytes_per_second": result.bytes_per_second,
        "peak_memory_bytes": result.peak_memory,
        "kernel": result.kernel,
        "workers": [
            {
                "name": share.worker,
                "kernel": share.kernel,
                "tasks": share.tasks,
                "seconds": round(share.seconds, 3),
                "bytes_read": share.bytes_read,
            }
            for share in result.workers
        ],
        "part": None
        if result.part is None
        else {
            "number": result.part.part.number,
            "count": result.part.part.count,
            "published": result.part.published,
            "waiting_for": result.part.waiting,
        },
        "non_finite": list(result.non_finite),
        "notes": list(result.notes),
    }


def number(value: Fraction | float) -> int | float:
    """Return an exact number as JSON has it."""
    return int(value) if value == int(value) else float(value)
