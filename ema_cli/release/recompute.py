"""Average the checkpoints of a published average again, by its manifest, and compare every byte.

Writes nothing. Takes the memory of a fold, and the same amount again for the bytes to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.comparing.replicas import check_replicas
from ema_cli.comparing.stored_sums import check_stored_sums
from ema_cli.engines.engine import Engine
from ema_cli.errors import EmaError, OutputError, RunError, UsageError, at_terminal
from ema_cli.folding.buffers import arrival, default_bytes, divide_memory, in_store, least_bytes
from ema_cli.folding.sample import Sample
from ema_cli.job import Job
from ema_cli.manifest.recipe_record import check_base
from ema_cli.manifest.types import Manifest
from ema_cli.preparing import lay_out
from ema_cli.release.byte_comparison import Comparison, holders
from ema_cli.release.clocks import OtherClock, overruled_by
from ema_cli.release.comparison_task import compare_by
from ema_cli.release.copies import copy_differences
from ema_cli.release.frames import frame_differences
from ema_cli.release.inputs import find_inputs
from ema_cli.release.metadata import compare_remarks, manifest_differences, own_words, side_file_differences
from ema_cli.release.published import Published
from ema_cli.release.replay import Replay, open_replay
from ema_cli.release.verify import Against, Verified
from ema_cli.release.watch_rounding import WatchRounding
from ema_cli.release.watched import ROUNDED, verify_watched
from ema_cli.runs.warnings import Remarks
from ema_cli.system.memory import give_back
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target


def verify_against(
    verified: Verified,
    paths: Sequence[Path],
    *,
    sample: Sample | None = None,
    merge_into: Path | None = None,
    threads: int = 1,
    engine: Engine | None = None,
    progress: ProgressCallback = no_progress,
) -> Verified:
    """Average the checkpoints at and below `paths` again, and add each difference to the problems of an average.

    Nothing is compared if the manifest, or a file that it lists, is missing. Of what `watch` wrote, see `watched`.

    Args:
        verified: the average as `verify` returned it.
        paths: the places at and below which the inputs are searched.
        sample: average and compare only these elements of each tensor.
        merge_into: the base model, of an average of adapters that were merged into it.
        threads: the number of threads for reading and averaging.
        engine: averages and compares; None for this process, which does it as well where an engine cannot.
        progress: called with the bytes read so far and the total.

    Raises:
        UsageError: where a base model is given and not needed, or needed and not given.
        CheckpointError: naming a checkpoint that is missing, has changed, or cannot be read.
        NonFiniteError: if they hold NaN or infinity, and the manifest does not allow it.
    """
    snapshot = verified.snapshot
    if snapshot.manifest is None or not snapshot.complete:
        return verified
    check_base(snapshot.manifest["recipe"], merge_into)
    if "watch" in snapshot.manifest and len(find_inputs(snapshot.manifest, paths).paths) < len(
        snapshot.manifest["inputs"]
    ):  # some are gone, or were written over
        return verify_watched(verified, snapshot.manifest, paths, threads)
    try:
        replay = open_replay(snapshot.manifest, paths, merge_into=merge_into, threads=threads, with_remarks=True)
    except (RunError, UsageError, OtherClock) as error:  # the manifest is not true, or its recipe is impossible
        return _with_problems(verified, [f"{snapshot.published.manifest}: {error.message(at_terminal)}"])
    except EmaError as error:
        if not verified.problems:
            raise
        return _with_problems(verified, [f"not compared with the checkpoints: {error.message(at_terminal)}"])
    try:
        return _compare(
            verified, snapshot.manifest, replay, sample=sample, threads=threads, engine=engine, progress=progress
        )
    except (
        OutputError,
        RunError,
        UsageError,
    ) as error:  # by this manifest no output can be laid out
        return _with_problems(verified, [f"is nothing that averaging gives: {error.message(at_terminal)}"])


def _compare(
    verified: Verified,
    manifest: Manifest,
    replay: Replay,
    *,
    sample: Sample | None,
    threads: int,
    engine: Engine | None,
    progress: ProgressCallback,
) -> Verified:
    """Fold the inputs, and compare the result with the published average."""
    snapshot = verified.snapshot
    job = _job(replay, snapshot.published)
    for checkpoint in snapshot.opened.values():
        checkpoint.tensors.share(job.checkpoints[-1].tensors)
    weights = [entry.weight for entry in replay.plan.entries]
    is_watched = "watch" in manifest
    if is_watched or sample is not None or job.options.exact_lora is not None:
        engine = None  # workers know of no rounding, no sample and no product; the last two are little
    rounding = WatchRounding.of([entry.checkpoint for entry in replay.plan.entries], weights) if is_watched else None
    comparison = Comparison(holders(snapshot), rounding)
    problems = comparison.expect(job.outputs[0])
    give_back(comparison.tensors)  # what reading headers and laying out took
    checksum = replay.checksum and sample is None
    notes = [] if sample is not None else check_stored_sums(job.checkpoints, threads)
    record = Record(
        job.checkpoints,
        job.options,
        job.copied,
        checksum=checksum,
        threads=threads,
        remarks=Remarks(),
        differing=check_replicas(job.checkpoints, threads) if checksum else (),
    )
    threads = threads if engine is None else engine.threads
    from_store = len(job.checkpoints) if in_store(job.checkpoints) else 0
    nbytes, arrives = max(default_bytes(job.checkpoints), least_bytes()), arrival(job.checkpoints)
    sizes = divide_memory(nbytes, threads, from_store=from_store, arrives=arrives)
    if engine is None:
        folded = job.fold([comparison], sizes=sizes, checksums=record.checksums, sample=sample, progress=progress)
    else:
        folded = compare_by(engine, job, comparison, record, sizes, progress)
    give_back(comparison.tensors)  # the buffers of the fold
    problems += comparison.problems()
    output, words = job.outputs[0], own_words(manifest, job.outputs[0])
    problems += side_file_differences(snapshot, output, {*words, *snapshot.edited})
    if not problems:
        problems += frame_differences(snapshot, output, same_version=not words)
    if not problems and output.likeness is not None:
        problems += copy_differences(snapshot, output.likeness, comparison.there)
    non_finite = folded.non_finite[0]
    again = record.manifest(output, replay.plan, {}, non_finite, next(iter(folded.factored), None))
    tensors = record.tensors(output, replay.plan, non_finite)
    path, sampled = snapshot.published.manifest, sample is not None
    problems += manifest_differences(manifest, path, again, tensors, sample=sampled)
    least, around = (record.remarks(replay.plan, non_finite, given) for given in (None, replay.remarks_around))
    missing, unknown = compare_remarks(manifest, path, least, around, sample=sampled)
    problems += missing
    unknown = (*unknown, *([ROUNDED] if is_watched else []))
    inputs = [file for checkpoint in job.checkpoints for file in checkpoint.files]
    for file in (*inputs, *snapshot.files.values()):
        file.check_unchanged()
    different = comparison.different
    against = Against(
        checkpoints=len(job.checkpoints),
        tensors=comparison.tensors,
        sample=sample,
        bytes_read=folded.bytes_read,
        tensors_different=len(different),
        bytes_different=sum(difference.nbytes for difference in different.values()),
        overruled=overruled_by(
            manifest["recipe"],
            [clock.source for checkpoint in job.checkpoints for clock in checkpoint.progress.clocks.values()],
        ),
    )
    verified = _with_problems(verified, problems)
    return replace(verified, against=against, notes=tuple(notes), own_words=words, unknown=unknown)


def _with_problems(verified: Verified, problems: Sequence[str]) -> Verified:
    return replace(verified, problems=(*verified.problems, *problems))


def _job(replay: Replay, published: Published) -> Job:
    """Return the job of making the average again, with the published paths as its target."""
    options = replace(replay.options, version=replay.manifest["tool"]["version"])
    is_dcp = replay.manifest["recipe"]["format"] == "dcp"
    return lay_out([replay.plan], [Target(published.path, published.is_folder, is_dcp)], options)
