"""From plans and a target to a job: all that headers can tell is checked before a tensor is read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ema_cli.dtypes import DType
from ema_cli.errors import CheckpointError, OutputError, RunError, UsageError, option
from ema_cli.job import Job, any_of, checkpoints_read
from ema_cli.planning.plan import Plan
from ema_cli.runs.entering import averaged_error
from ema_cli.runs.same_model import check_same_model
from ema_cli.runs.tensor_rules import check_averageable, copied_names
from ema_cli.storage.location import held_claim_on, location
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import WRITE_ELSEWHERE
from ema_cli.writing.layout import lay_out_output
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.outputs import Output, output_specs
from ema_cli.writing.replacing import check_folder_around
from ema_cli.writing.target import Target, assign_targets

_ROOM_FOR_STORE = "it is made in the folder for temporary files first: make room there, or let TMPDIR name another"


def prepare(
    plans: Sequence[Plan],
    target: Target | Sequence[Target],
    options: OutputOptions | None = None,
    *,
    force: bool,
    manifest: bool = True,
    may_be_made: bool = False,
    goes_on: bool = False,
) -> Job:
    """Check everything that headers can tell, and return what there is to do.

    Args:
        plans: those of one run.
        target: where their averages go; of several a folder, or a pattern, or one target for each.
        options: the form of the outputs.
        force: replace an output that is there.
        manifest: write a manifest and sums, too.
        may_be_made: whether another part of the same average may have published it; `perform` looks, then.
        goes_on: whether several make it, who go on with what is made already: that needs no room once more.

    Raises:
        UsageError, CheckpointError, RunError, OutputError: as `averaging.average`.
    """
    options = options or OutputOptions()
    like_input = options.like_input
    targets = assign_targets(target, plans, like_input=like_input) if isinstance(target, Target) else target
    unsharded = next((assigned for assigned in targets if assigned.is_dcp or not assigned.is_folder), None)
    if options.max_shard_size is not None and unsharded is not None:
        raise UsageError(
            f"is for a folder{' of safetensors' if unsharded.is_dcp else ''}, and this is one file",
            option="max_shard_size",
            hint=f"a name without a suffix: {option('o', 'DIR')}",
        )
    for plan in plans:
        refuse_damaged(plan)
        refuse_averaged(plan)
    job = replace(lay_out(plans, targets, options, manifest=manifest), force=force)
    if may_be_made:
        check_folder_around(job.target.path)
    else:
        _check_target(job)
    location(job.target.path.absolute().parent).check_writable()
    _check_room(job, may_be_made=may_be_made, goes_on=goes_on)
    return job


def _check_room(job: Job, *, may_be_made: bool, goes_on: bool) -> None:
    free, is_stored = job.bytes_free, isinstance(job.target.path, StorePath)
    if job.bytes_on_disk <= free or (may_be_made and location(job.target.path).info().exists):
        return
    if goes_on and not is_stored:
        from ema_cli.storage.staging.shared import bytes_made_beside  # which only those need who share the work

        if job.bytes_on_disk <= free + bytes_made_beside(job.target.path):
            return
    raise OutputError(
        f"needs {job.bytes_on_disk} bytes, but {free} are free",
        subject=job.target.path,
        hint=_ROOM_FOR_STORE if is_stored else f"make room, or {WRITE_ELSEWHERE}",
    )


def _check_target(job: Job) -> None:
    """Check that outputs may be written where they go; of what is in the way in a store say who claims it."""
    try:
        job.check_target()
    except OutputError as error:
        claim = None
        with suppress(CheckpointError, OutputError):  # the first error says more
            claim = held_claim_on(job.target.path)
        if claim is None:
            raise
        raise OutputError(
            f"{error.fact}; {claim} is the claim of a run that writes there, or died",
            subject=error.subject,
            hint="wait for its end; if it died, try again in a minute; or write elsewhere",
        ) from error


def lay_out(plans: Sequence[Plan], targets: Sequence[Target], options: OutputOptions, *, manifest: bool = True) -> Job:
    """Check that the checkpoints are of one model that can be averaged, and lay out its outputs.

    Args:
        targets: where the average of each plan goes. Nothing there is looked at.

    Raises:
        CheckpointError, RunError, OutputError: as `prepare`.
    """
    dtype, copy = options.dtype, plans[0].run.options.read.copy
    entered = any_of(plans, [entry.checkpoint for plan in plans for entry in plan.entries])
    newest = plans[0].newest
    copied = copied_names(newest.tensors.specs, copy)
    made = next((name for name in copied if name in newest.output_dtypes), None)
    if made is not None and plans[0].run.options.merge_into is not None:
        raise UsageError(
            f"'{made}' is made of the base model and the adapters: there is nothing to copy",
            option="copy",
            hint=f"leave out one of {option('copy', True)} and {option('merge_into', True)}",
        )
    if dtype is None:  # else they are rounded as all is
        copied |= newest.unchanged
    # What is copied may be missing in the newest, or have another shape in others.
    unlike = copied.union(*(copied_names(checkpoint.tensors.specs, copy) for checkpoint in entered)) if copy else copied
    check_same_model(entered, mixed_floats=dtype is not None, copied=unlike, base=plans[0].run.base)
    check_averageable(newest, copied)
    _check_alike(plans, dtype, copied)
    outputs: list[Output] = []
    texts: dict[bytes, bytes] = {}
    for plan, target in zip(plans, targets, strict=True):
        tables = [file.table for file in outputs[0].files] if outputs else []
        output = lay_out_output(plan, target, options, copied, tables, manifest=manifest)
        # An index is as long as the list of tensors, and the same for each average: one is kept.
        shared = {name: texts.setdefault(text, text) for name, text in output.texts.items()}
        outputs.append(replace(output, texts=shared))
    return Job(plans, checkpoints_read(plans), outputs, options, copied, manifest)


def _check_alike(plans: Sequence[Plan], dtype: DType | None, copied: frozenset[str]) -> None:
    """Check that one fold makes each average as it would be alone.

    Copied tensors may differ between the newest checkpoints, and so may, with `dtype`, the float types that enter.
    """
    if len({id(entry.checkpoint.tensors.specs) for plan in plans for entry in plan.read}) == 1:
        return
    for plan in plans[1:]:
        kinds = [_kinds(one, dtype, copied) for one in (plans[0], plan)]
        different = [name for name in {**kinds[0], **kinds[1]} if kinds[0].get(name) != kinds[1].get(name)]
        if different:
            raise RunError(
                f"'{different[0]}' has not the types, or the shape, that it has for "
                f"{plans[0].recipe.law.words().short}",
                subject=plan.newest.path,
                hint="average them one by one",
            )


def _kinds(plan: Plan, dtype: DType | None, copied: frozenset[str]) -> dict[str, object]:
    """Return for each tensor its spec in the output, and the dtypes in which it enters unless it is copied."""
    written = output_specs(plan.newest, dtype, copied)
    tables = [entry.checkpoint.tensors.specs for entry in plan.read]
    distinct = list({id(specs): specs for specs in tables}.values())  # most checkpoints share one
    return {
        name: (spec, {specs[name].dtype.name for specs in distinct if name in specs} if name not in copied else None)
        for name, spec in written.items()
    }


def refuse_averaged(plan: Plan) -> None:
    """Raise a RunError if a checkpoint of the plan holds averages already: a second average smooths twice."""
    averaged = [entry.checkpoint for entry in plan.entries if entry.checkpoint.averages]
    begun = [checkpoint for checkpoint in averaged if checkpoint.averages and checkpoint.averages.begun]
    if averaged:
        raise averaged_error((begun or averaged)[0])


def refuse_damaged(plan: Plan) -> None:
    """Raise a CheckpointError for the first damaged checkpoint that `start` and `stop` do not leave out."""
    for damaged in plan.run.damaged:
        raise damaged.error
