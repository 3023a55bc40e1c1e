"""Publish the averages of a moment: as `average` would write them, from what is kept alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.job import Job
from ema_cli.law.time import Time, Unit
from ema_cli.making import Recording, write_readymade
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.sums import manifest_path
from ema_cli.manifest.types import Manifest
from ema_cli.passes import plan_passes
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.preparing import lay_out
from ema_cli.runs.order import order_units
from ema_cli.runs.run import Run
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.location import claim_on, location
from ema_cli.watching.asked import Asked
from ema_cli.watching.moments import Moment
from ema_cli.watching.whole import kept
from ema_cli.writing.outputs import Output
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target, assign_targets


def plans_over(asked: Asked, checkpoints: Sequence[Checkpoint], unit: Unit) -> list[Plan]:
    """Return a plan for each average, over checkpoints of which most are stand-ins.

    Raises:
        RunError: where none of them enters.
    """
    units = sorted(order_units(checkpoints), key=lambda one: one is not unit)
    run = Run(asked.path, tuple(checkpoints), tuple(units), options=asked.opened)
    return [make_plan(run, recipe) for recipe in asked.recipes]


def targets_of(asked: Asked, plans: Sequence[Plan]) -> list[Target]:
    """Return where each average goes.

    Raises:
        UsageError: where the name is of another kind than what is written there.
    """
    return assign_targets(asked.target, plans, like_input=asked.output.like_input)


def job_of(asked: Asked, moment: Moment) -> Job:
    """Return what there is to write at a moment, laid out.

    Raises:
        CheckpointError: where what is kept cannot be read.
        OutputError: where the output cannot be laid out, or holds what is not ours.
    """
    averages = tuple(moment.average(recipe.law.name) for recipe in asked.recipes)
    checkpoints = moment.form(averages[0]).stand_ins(moment.journal.folded, asked.path)
    if asked.keeps_whole:
        checkpoints[-1] = kept(moment.folder, moment.newest, asked.opened.read)
    plans = plans_over(asked, checkpoints, moment.journal.unit)
    job = replace(lay_out(plans, targets_of(asked, plans), asked.output), force=True, readymade=averages)
    job.check_target()
    return job


def publish(asked: Asked, moment: Moment) -> Job:
    """Write the averages of a moment in the place of older ones, all of them or nothing.

    Raises:
        OutputError: where they cannot be written.
        NonFiniteError: for an overflow on the way to the output's dtype.
    """
    job = job_of(asked, moment)
    prints = [past.fingerprint for past in moment.journal.folded]
    known = dict(zip(job.plans[0].run.checkpoints, prints, strict=True))
    record = Record(
        job.checkpoints,
        job.options,
        job.copied,
        checksum=False,
        threads=1,
        remarks=Remarks(),
        known=[known[checkpoint] for checkpoint in job.checkpoints],
    )
    passes = plan_passes(job, asked.threads, asked.max_memory)
    write_readymade(job, passes, record, Recording(watched={"gaps": list(moment.journal.gaps)}))
    return job


def is_watched(job: Job) -> bool:
    """Return whether averages of a watch are there already."""
    return any("watch" in (_manifest(output) or {}) for output in job.outputs)


def is_half_replaced(job: Job) -> bool:
    """Return whether a run was ended while it replaced what is there, in a store, and all of that is ours.

    Manifests are withdrawn first: only the files tell whose they are. `check_target` looks at those of a folder.
    """
    target = job.target
    return claim_on(target.path) is not None and (
        target.is_folder or _last_clock(target.path, _how_read(job)) is not None
    )


def published_clock(job: Job) -> Time | None:
    """Return the clock of the averages that are there: the least, None where one is not, or not as a whole.

    A file comes after its manifest: a watch that is ended between the two leaves one that is of another file.
    """
    if claim_on(job.target.path) is not None:  # of one that was ended while it put them into a store
        return None
    clocks = []
    for output in job.outputs:
        manifest, target = _manifest(output), output.target
        if manifest is None or "watch" not in manifest or not manifest["inputs"]:
            return None
        clock = manifest["inputs"][-1]["clock"]
        if not target.is_folder and _last_clock(target.path, _how_read(job)) != clock:
            return None
        clocks.append(Time.parse(clock))
    return min(clocks, key=lambda clock: clock.value)


def _how_read(job: Job) -> ReadOptions:
    """Return how an output is read: what is of the form of the input as that, all else without a choice."""
    return job.plans[0].run.options.read if job.options.like_input else ReadOptions()


def _last_clock(path: Path, options: ReadOptions) -> str | None:
    """Return the clock of the newest checkpoint in an average in one file; None where it is none."""
    try:
        mark: Any = open_checkpoint(path, options).mark
        return str(mark["checkpoints"][-1][1]) if mark else None
    except (EmaError, LookupError, TypeError):
        return None


def _manifest(output: Output) -> Manifest | None:
    """Return the manifest of an output, None where none is there that can be read."""
    path = manifest_path(output.target.path, is_folder=output.target.is_folder)
    try:
        return read_manifest(path) if location(path).info().is_file else None
    except EmaError:
        return None
