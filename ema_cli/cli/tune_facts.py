"""What `tune` and `watch` have to tell, as a program reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ema_cli.cli.json_facts import Facts, plan_facts

if TYPE_CHECKING:
    from ema_cli.cli.outcomes import Candidates
    from ema_cli.runs.warnings import Remarks
    from ema_cli.tuning.tune import Tuned
    from ema_cli.watching.telling import Watched


def candidates_facts(candidates: Candidates) -> Facts:
    """Return what `tune` would evaluate, and what room that takes; in bytes."""
    would_evaluate = {
        "path": candidates.job.target.path.as_posix(),
        "candidates": candidates.count,
        "bytes_each": candidates.job.bytes_to_write,
        "bytes_at_once": candidates.bytes_at_once,
        "bytes_free": candidates.job.bytes_free,
    }
    plans = [plan_facts(plan) for plan in candidates.plans]
    return {"plans": plans, "would_evaluate": would_evaluate, **_said(candidates.remarks)}


def tuned_facts(tuned: Tuned, of_run: Remarks) -> Facts:
    """Return all results of `tune`, and what was written, if something was; what is said of the run comes first."""
    written = tuned.problem is None
    return {
        "candidates": [
            {
                "name": result.name,
                "values": list(result.values),
                "mean": result.mean if result.values else None,
                "spread": result.spread,
                "failed": result.failed,
                "same_as": result.same_as,
            }
            for result in tuned.results
        ],
        "maximize": tuned.maximize,
        "best": tuned.best.name if tuned.best else None,
        "plan": plan_facts(tuned.plan) if tuned.plan is not None else None,
        "written": {"path": tuned.target.path.as_posix()} if written else None,
        **_said(of_run, tuned.remarks),
    }


def _said(*remarks: Remarks) -> Facts:
    return {
        "warnings": [warning for each in remarks for warning in each.warnings],
        "notes": [note for each in remarks for note in each.notes],
    }


def watched_facts(watched: Watched) -> Facts:
    """Return what `watch` has done until it ended."""
    return {
        "clock": None if watched.clock is None else str(watched.clock),
        "checkpoints": watched.folded,
        "entered": [
            {
                "name": entered.name,
                "clock": str(entered.clock),
                "seconds": entered.seconds,
                "skipped": entered.skipped,
            }
            for entered in watched.entered
        ],
        "gaps": list(watched.gaps),
        "written": None
        if watched.job is None
        else {
            "path": watched.target.path.as_posix(),
            "averages": [output.target.path.as_posix() for output in watched.job.outputs],
        },
    }
