"""Averaging, on one page: check, fold, read back, publish. No torch here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ema_cli.checkpoint import Checkpoint
from ema_cli.comparing.final_model import final_model_notes
from ema_cli.comparing.jumps import WeightSamples, jump_notes
from ema_cli.comparing.replicas import check_replicas
from ema_cli.comparing.stored_sums import check_stored_sums
from ema_cli.comparing.twins import check_alphas, check_averages_move, check_copies, check_twins
from ema_cli.engines.engine import Engine
from ema_cli.errors import UsageError
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.job import Job
from ema_cli.kinds import as_count, as_list, as_size, check_flags, check_instance, check_keywords, check_path_kinds
from ema_cli.making import Made, Recording, fold_here, make_pass, publish_outputs
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.passes import keep_more_blocks, plan_passes
from ema_cli.planning.advice import factored_note
from ema_cli.planning.plan import Plan
from ema_cli.preparing import prepare
from ema_cli.result import PartDone, Result
from ema_cli.runs.base import blamed
from ema_cli.runs.tensor_rules import STATISTICS_NOTE, averages_statistics
from ema_cli.runs.warnings import lines_of
from ema_cli.storage.location import location
from ema_cli.storage.names import as_path
from ema_cli.system.memory import peak_bytes
from ema_cli.system.progress import ProgressCallback, no_progress, part_of
from ema_cli.writing.loading import loading_notes
from ema_cli.writing.output_options import OutputKeywords, OutputOptions
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target, parse_target

if TYPE_CHECKING:  # which few averages need
    from ema_cli.engines.part import Part
    from ema_cli.engines.parts import Parts
    from ema_cli.engines.spread import Spread


def average(
    plans: Plan | Sequence[Plan],
    target: str | Path | Target,
    *,
    threads: int | None = None,
    max_memory: int | str | None = None,
    force: bool = False,
    manifest: bool = True,
    checksum: bool = False,
    sign: str | Path | None = None,
    executor: Executor | None = None,
    progress: ProgressCallback = no_progress,
    **form: Unpack[OutputKeywords],
) -> Result:
    """Write the weighted average of each plan's checkpoints to `target`, all of it or nothing.

    Several plans of one run share one reading. Tensors to be copied are named when the run is opened.

    Args:
        target: a name that ends in .safetensors or .pt for one file, in .ckpt for one of Lightning's, any other name
            for a folder, with `dcp:` before it for one of torch.distributed.checkpoint's; of several plans a new folder
            for all, or a pattern with `{half_life}`, `{window}` or `{clock}` for their names in it.
        threads: how many read and average at once. It does not show in the output.
        max_memory: most bytes of memory of the process, as "200MB". It does not show in the output.
        force: replace an output that is there.
        manifest: write a manifest and sums next to a file, or into a folder.
        checksum: put the sums of all that is read into the manifest, too; check those that files of torch.save hold,
            and compare whole what several ranks saved alike.
        sign: a private key (PEM), with which manifest, sums and all other files are signed; needs `ema-cli[sign]`.
        executor: has the tensor files made by its workers, in processes or on machines that see inputs and output
            under the same paths; any of `concurrent.futures`, as `ProcessPoolExecutor(8)` or Dask's
            `client.get_executor()`. `threads` are those of one task then, by default one. It does not show in the
            output.
        progress: is called with the bytes read so far, and in all, now and then.
        form: `dtype`, `max_shard_size`, `allow_non_finite`, `like_input`, `drop`, `exact_lora`; see `OutputKeywords`.

    Raises:
        UsageError: where `target` does not fit the number of plans, `max_memory` is too little, or a value is unknown.
        RunError: where the checkpoints are not of one model, are averages already, or contradict each other.
        NonFiniteError: for a NaN or infinity, unless `allow_non_finite`.
        CheckpointError: where one cannot be read, or changes meanwhile.
        OutputError: where the target exists without `force`, or cannot be written.
        TypeError: for an option that there is not.
    """
    check_keywords("average", form, OutputKeywords)
    plans = as_list(plans)
    if not plans:
        raise UsageError("nothing to average: give a plan")
    for plan in plans:
        check_instance(plan, Plan, "what make_plan returns")
    threads = None if threads is None else as_count(threads, "threads", "threads")
    check_flags(force=force, manifest=manifest, checksum=checksum)
    check_path_kinds(sign=sign)
    if executor is not None:
        check_instance(executor, Executor, "one of concurrent.futures, as ProcessPoolExecutor(8)")
    options = OutputOptions.parse(**form)
    target = target if isinstance(target, Target) else parse_target(target, like_input=options.like_input)
    job = prepare(plans, target, options, force=force, manifest=manifest, goes_on=executor is not None)
    signer = None
    if sign is not None:
        from ema_cli.manifest.signing import open_signer

        signer = open_signer(as_path(sign))
    most_memory = None if max_memory is None else as_size(max_memory, "max_memory")
    recording = Recording(checksum, signer=signer)
    by = None if executor is None else Engine("executor", executor)
    return perform(job, threads=threads, max_memory=most_memory, recording=recording, by=by, progress=progress)


def perform(
    job: Job,
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    recording: Recording | None = None,
    by: Engine | Part | None = None,
    progress: ProgressCallback = no_progress,
) -> Result:
    """Do what was prepared; see `average`.

    `recording` counts where the job has a manifest. An engine makes the files of tensors; or this process makes one
    part of them, and publishes all if it is the last.
    """
    began = time.monotonic()
    recording = recording or Recording()
    notes: list[str] = []
    if isinstance(by, Engine) and job.options.exact_lora is not None:
        notes.append(f"products of adapters are small: averaged here, by no worker of {by.name}")
        by = None
    passes = plan_passes(job, threads or (by.threads if isinstance(by, Engine) else None), max_memory)
    if max_memory is not None:
        keep_more_blocks(passes, max_memory)
    threads = passes[-1].sizes.threads
    said = check_values(job)
    differing: list[tuple[str, Checkpoint]] = []
    if recording.checksum:
        notes += check_stored_sums(job.checkpoints, threads, replaceable=True)
        differing = check_replicas(job.checkpoints, threads)
        recording.demand(lines_of(differing))
    notes += said
    notes += loading_notes(job.plans, job.outputs)
    samples = WeightSamples(len(job.checkpoints))
    record = _record(job, recording, threads, samples, differing) if job.manifest else None
    notes += jumps(job, samples)
    made = Made()
    sharing, parts = _sharing(job, by, record, threads)
    with blamed(job.plans[0].run.base), sharing or location(job.target.path).staging() as staging:
        notes += staging.notes
        total = sum(each.job.bytes_to_read for each in passes)
        publishes = parts is None or parts.make(passes, job, record, progress)
        for each in passes if publishes else ():
            report = part_of(progress, made.bytes_read, total) if parts is None else no_progress
            make_pass(each, staging, job.target, record, recording, made, sharing or fold_here, report)
        check_unchanged(job)
        if publishes:
            publish_outputs(job, staging)
    for output, factored in zip(job.outputs, made.factored, strict=bool(made.factored)):
        notes.append((f"{output.target.path.name}: " if len(job.outputs) > 1 else "") + factored_note(factored))
    averaged = sum(spec.dtype.averaged and name not in job.copied for name, spec in job.tensors.items())
    return Result(
        job.target,
        job.outputs,
        averaged,
        len(job.tensors) - averaged,
        made.bytes_read if parts is None else sum(share.bytes_read for share in parts.shares),
        job.bytes_to_write,
        time.monotonic() - began,
        peak_bytes(),
        str(chosen_kernel()) if sharing is None else sharing.kernels,
        tuple(sorted(made.non_finite)),
        made.manifests,
        tuple(notes),
        record is not None and recording.signer is not None,
        () if sharing is None else sharing.shares,
        None if parts is None else PartDone(parts.part, publishes, parts.waiting, parts.others),
        tuple(lines_of(differing)),
    )


def _sharing(
    job: Job, by: Engine | Part | None, record: Record | None, threads: int
) -> tuple[Spread | Parts | None, Parts | None]:
    """Return what makes the tensor files where several do, an engine or parts; and that once more if they are parts."""
    if by is None:
        return None, None
    prints = record.fingerprints if record is not None else fingerprints(job.checkpoints, threads)
    checksum = record is not None and record.checksums is not None
    if isinstance(by, Engine):
        from ema_cli.engines.spread import Spread  # which most averages do not need

        return Spread(job, by, prints, checksum=checksum), None
    from ema_cli.engines.parts import Parts

    parts = Parts(job, by, prints, checksum=checksum)
    return parts, parts


def jumps(job: Job, samples: WeightSamples) -> list[str]:
    """Return a note where the weights show checkpoints of another run; averages that were stored are no run."""
    if any(plan.approximation is not None for plan in job.plans):
        return []
    clocks = {entry.checkpoint: float(entry.clock.value) for plan in job.plans for entry in plan.read}
    of_run = [checkpoint for checkpoint in job.checkpoints if checkpoint is not job.plans[0].run.base]
    return jump_notes(samples, of_run, [clocks[checkpoint] for checkpoint in of_run])


def _record(
    job: Job, recording: Recording, threads: int, samples: WeightSamples, differing: Sequence[tuple[str, Checkpoint]]
) -> Record:
    return Record(
        job.checkpoints,
        job.options,
        job.copied,
        checksum=recording.checksum,
        threads=threads,
        remarks=recording.remarks,
        watch=samples.add,
        differing=differing,
    )


def check_values(job: Job) -> list[str]:
    """Check what a few values of the checkpoints tell: that no two are alike, and what else is no run to be averaged.

    Return what is worth knowing of them, and no reason to warn.

    Raises:
        CheckpointError, RunError: as `average`.
    """
    check_twins(job.plans)
    for plan in job.plans:
        check_copies(plan)
        check_averages_move(plan)
    check_alphas(job.checkpoints)
    averaged = (name for name in job.tensors if name not in job.copied)
    has_statistics = len(job.checkpoints) > 1 and averages_statistics(averaged)
    return [*([STATISTICS_NOTE] if has_statistics else []), *final_model_notes(job.plans)]


def check_unchanged(job: Job) -> None:
    """Raise a CheckpointError if an input changed while it was read."""
    inputs = [file for checkpoint in job.checkpoints for file in checkpoint.files]
    for source in (*inputs, *(source for output in job.outputs for source in output.sources)):
        source.check_unchanged()
