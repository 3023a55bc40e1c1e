"""The pipeline after the plans: check, lay out the outputs, fold, read back, publish. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ema_cli.comparing.twins import check_alphas, check_twins
from ema_cli.dtypes import DType
from ema_cli.errors import UsageError, option
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.fold import Folded
from ema_cli.job import Work, _buffer_sizes, _check_target, prepare
from ema_cli.manifest.sums import sidecars
from ema_cli.manifest.types import Manifest
from ema_cli.planning.plan import Plan
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import WrittenFile
from ema_cli.system.memory import peak_bytes
from ema_cli.system.processors import default_threads
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.files import FileSink, allow_descriptors, make_folder, read_back, sum_up, write_small_files
from ema_cli.writing.outputs import Output, OutputOptions
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target


@dataclass(frozen=True, slots=True)
class Result:
    """What was done. Sizes in bytes; the tensors are those of each output.

    `bytes_written` are those of weights and side files. `manifests`: that of each output, less its tensors.
    """

    target: Target
    outputs: Sequence[Output]
    tensors_averaged: int
    tensors_copied: int
    bytes_read: int
    bytes_written: int
    seconds: float
    peak_memory: int
    non_finite: tuple[str, ...]
    manifests: Sequence[Manifest] = ()


def average(
    plans: Plan | Sequence[Plan],
    target: Target,
    *,
    dtype: DType | None = None,
    copy: Sequence[str] = (),
    max_shard_size: int | None = None,
    allow_non_finite: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    manifest: bool = True,
    checksum: bool = False,
    warnings: Sequence[str] = (),
    check: Callable[[Manifest], None] = lambda manifest: None,
    report: ProgressCallback = no_progress,
) -> Result:
    """Write the weighted average of each plan's checkpoints to `target`, all of it or nothing.

    Several plans of one run share one reading; what `target` names is then the folder that holds their averages, or
    a pattern with `{half_life}` for their names in it.

    `dtype` replaces that of floating tensors, which may then differ between checkpoints. Tensors whose names match a
    pattern in `copy` are copied from the newest. `max_shard_size`: bytes in one file of a folder, by default as the
    newest checkpoint has it.

    Beside or inside each average a `manifest` and sums are written, with `checksum` those of all that was read, too,
    and with `warnings` before those that are found here. `check` is told each manifest before anything is published,
    and may raise. `max_memory` bounds the process, in bytes; neither it nor `threads` shows in the output.
    `report(done, total)` is told the bytes read, now and then.

    Raises:
        UsageError: where `target` does not fit the number of plans, or `max_memory` is too little.
        RunError: where the checkpoints are not of one model, are averages already, or contradict each other.
        NonFiniteError: for a NaN or infinity, unless `allow_non_finite`.
        CheckpointError: where one cannot be read, or changes meanwhile.
        OutputError: where the target exists without `force`, or cannot be written.
    """
    began = time.monotonic()
    plans = [plans] if isinstance(plans, Plan) else plans
    if not plans or (threads is not None and threads < 1):
        raise UsageError(
            f"nothing to average, or no thread to do it: give a plan, and at least one of {option('threads')}"
        )
    options = OutputOptions(dtype, tuple(copy), max_shard_size, allow_non_finite)
    work = prepare(plans, target, options, force=force, manifest=manifest)
    sizes = _buffer_sizes(plans, threads or default_threads(), max_memory)
    check_twins(plans)
    check_alphas(work.checkpoints)
    record = (
        Record(
            work.checkpoints,
            options,
            work.copied,
            checksum=checksum,
            threads=sizes.threads,
            warnings=warnings,
        )
        if manifest
        else None
    )
    with location(work.target.path).staging() as staging:
        folders = [make_folder(staging, work.target, output.target) for output in work.outputs]
        folded, sums = _write_weights(work, folders, sizes, report, record)
        manifests = []
        for output, plan, folder, written, non_finite in zip(
            work.outputs, plans, folders, sums, folded.non_finite, strict=True
        ):
            written.update(write_small_files(output, folder))
            for file in output.files:
                read_back(folder / file.name, file)
            if record is not None:
                told = record.manifest(output, plan, written, non_finite)
                check(told)
                manifests.append(told)
                record.write(told, output, plan, folder, non_finite)
        inputs = [file for each in work.checkpoints for file in each.files]
        for source in (*inputs, *(source for output in work.outputs for source in output.sources)):
            source.check_unchanged()
        path = work.target.path
        with staging.alone():
            # Once more: what somebody put there meanwhile must not be replaced.
            _check_target(plans, work.target, force=force)
            if work.target.is_folder:
                staging.publish_folder(path.name, force=force)
            else:
                staging.publish_file(path.name, {each.name: each for each in sidecars(path)}, force=force)
    specs = plans[0].newest.tensors.specs
    averaged = sum(spec.dtype.averaged and name not in work.copied for name, spec in specs.items())
    return Result(
        work.target,
        work.outputs,
        averaged,
        len(specs) - averaged,
        folded.bytes_read,
        work.bytes_to_write,
        time.monotonic() - began,
        peak_bytes(),
        tuple(sorted(set().union(*(each.let_through for each in folded.non_finite)))),
        manifests,
    )


def _write_weights(
    work: Work, folders: Sequence[Path], sizes: BufferSizes, report: ProgressCallback, record: Record | None
) -> tuple[Folded, list[dict[str, WrittenFile]]]:
    """Fold into the files of all outputs; return what was done, and of each output the size and sum of its files.

    The tables for it are gone afterwards: reading back takes as much again.
    """
    with ExitStack() as stack:
        allow_descriptors(sum(len(output.files) for output in work.outputs))
        sinks = []
        for output, folder in zip(work.outputs, folders, strict=True):
            sinks.append(FileSink(output, folder, summed=record is not None))
            stack.callback(sinks[-1].close)
        checksums = record.checksums if record is not None else None
        folded = work.fold(sinks, sizes=sizes, checksums=checksums, progress=report)
        streams = [stream for sink in sinks for stream in sink.streams]
        files = [file for output in work.outputs for file in output.files]
        for file, stream in zip(files, streams, strict=True):
            file.finish(stream)
        for stream in streams:
            stream.sync()
        sums = iter(sum_up(streams, sizes.threads) if record is not None else [""] * len(streams))
        written = [{file.name: WrittenFile(file.size, next(sums)) for file in output.files} for output in work.outputs]
    return folded, written
