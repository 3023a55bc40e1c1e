"""One pass of an averaging: tensors, small files, manifest; read back, and put where it belongs. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.folding.fold import Factored, Folded
from ema_cli.job import Job
from ema_cli.manifest.signature import signature_path
from ema_cli.manifest.types import Manifest, WatchRow
from ema_cli.passes import Pass
from ema_cli.planning.plan import Plan
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import WrittenFile
from ema_cli.storage.segments import segments_for
from ema_cli.storage.staging.local import Sender, Staging
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.files import (
    allow_descriptors,
    finish_files,
    make_folder,
    make_sink,
    publish,
    read_all_back,
    write_small_files,
)
from ema_cli.writing.open_files import Storing
from ema_cli.writing.outputs import Output
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target

if TYPE_CHECKING:  # which few averages need
    from ema_cli.manifest.signing import Signer


@dataclass(frozen=True, slots=True)
class Recording:
    """What a manifest tells besides the average, and who looks at it first.

    Attributes:
        checksum: put the sums of all that is read into it, too; check those that files of torch.save hold, and compare
            whole what several ranks saved alike.
        remarks: come before those that are made here.
        check: is called with each manifest before anything is published, and may raise.
        demand: is called with what all bytes of the checkpoints gave to warn of, before any is averaged, and may raise.
        signer: signs the manifest, the sums and all other files.
        watched: what `watch` says of its averages, None for those of others.
    """

    checksum: bool = False
    remarks: Remarks = field(default_factory=Remarks)
    check: Callable[[Manifest], None] = lambda manifest: None
    signer: Signer | None = None
    watched: WatchRow | None = None
    demand: Callable[[Sequence[str]], None] = lambda warnings: None


@dataclass(slots=True)
class Made:
    """What the passes have done so far; the names of tensors that are not finite are those of any average."""

    bytes_read: int = 0
    non_finite: set[str] = field(default_factory=set)
    manifests: list[Manifest] = field(default_factory=list)
    factored: list[Factored] = field(default_factory=list)


Fold = Callable[
    [Pass, Sequence[Path], Sender | None, Record | None, ProgressCallback],
    tuple[Folded, list[dict[str, WrittenFile]]],
]
"""Makes the tensor files of one pass: `fold_here`, or by an engine."""


def make_pass(
    one_pass: Pass,
    staging: Staging,
    target: Target,
    record: Record | None,
    recording: Recording,
    made: Made,
    fold: Fold,
    progress: ProgressCallback,
) -> None:
    """Make the averages of one pass, each whole in its folder of `target`: tensors, small files, manifest."""
    job = one_pass.job
    folders = [make_folder(staging, target, output.target) for output in job.outputs]
    sender = staging.sender(len(job.plans) * job.files_at_once) if job.is_sent else None
    if record is not None:
        record.begin(job.checkpoints)
    folded, written = fold(one_pass, folders, sender, record, progress)
    for output, plan, folder, files in zip(job.outputs, job.plans, folders, written, strict=True):
        files.update(write_small_files(output, folder, sender, summed=record is not None))
        staging.read_back(folder, partial(_read_back, output, plan))
    if record is not None:
        made.manifests += _write_manifests(job, record, folders, folded, written, recording)
    made.bytes_read += folded.bytes_read
    made.factored += folded.factored
    made.non_finite.update(*(non_finite.let_through for non_finite in folded.non_finite))


def write_readymade(job: Job, passes: Sequence[Pass], record: Record, recording: Recording) -> None:
    """Write averages that are made already in the form that a job says, all of them or nothing; see `Job.readymade`."""
    made = Made()
    with location(job.target.path).staging() as staging:
        for each in passes:
            make_pass(each, staging, job.target, record, recording, made, fold_here, no_progress)
        publish_outputs(job, staging)


def fold_here(
    one_pass: Pass,
    folders: Sequence[Path],
    sender: Sender | None,
    record: Record | None,
    progress: ProgressCallback,
    *,
    synced: bool = True,
) -> tuple[Folded, list[dict[str, WrittenFile]]]:
    """Fold into the files of all outputs; return what was done, and of each output the size and sum of its files.

    Unless `synced`, the disk need not have them yet. There are no sums without a `record`.

    The tables for it are gone afterwards: reading back takes as much again.
    """
    job, sizes = one_pass.job, one_pass.sizes
    with ExitStack() as stack:
        segments = stack.enter_context(segments_for(one_pass.segments if synced else 0))
        files = [file for output in job.outputs for file in output.files]
        allow_descriptors(len(files), twice=segments is not None)
        storing = Storing(record is not None, synced, sender, segments)
        sinks = []
        for output, folder in zip(job.outputs, folders, strict=True):
            sinks.append(make_sink(output, folder, storing))
            stack.callback(sinks[-1].close)
        checksums = record.checksums if record is not None else None
        folded = job.fold(sinks, sizes=sizes, checksums=checksums, progress=progress)
        streams = [stream for sink in sinks for stream in sink.streams]
        sums = iter(finish_files(list(zip(files, streams, strict=True)), sizes.threads))
        written = [{file.name: WrittenFile(file.size, next(sums)) for file in output.files} for output in job.outputs]
    return folded, written


def _read_back(output: Output, plan: Plan, folder: Path) -> None:
    """Check that an average in `folder` is read as it was meant; see `read_all_back`."""
    read_all_back(output, folder, plan.newest, plan.run.options.read)


def _write_manifests(
    job: Job,
    record: Record,
    folders: Sequence[Path],
    folded: Folded,
    written: Sequence[Mapping[str, WrittenFile]],
    recording: Recording,
) -> list[Manifest]:
    """Write manifest, sums and, where that is wanted, signature of each output; return the manifests."""
    manifests = []
    several_factored: Sequence[Factored | None] = folded.factored or [None] * len(job.outputs)
    for output, plan, folder, files, non_finite, factored in zip(
        job.outputs, job.plans, folders, written, folded.non_finite, several_factored, strict=True
    ):
        manifest = record.manifest(output, plan, files, non_finite, factored)
        if recording.watched is not None:
            manifest["watch"] = recording.watched
        recording.check(manifest)
        sums = record.write(manifest, output, plan, folder, non_finite)
        if recording.signer is not None:
            name, is_folder = output.target.path.name, output.target.is_folder
            path = signature_path(folder if is_folder else folder / name, is_folder=is_folder)
            recording.signer.sign(name, sums, path)
        manifests.append(manifest)
    return manifests


def publish_outputs(job: Job, staging: Staging) -> None:
    """Put the outputs where they belong, in one step."""
    with staging.alone():
        job.check_target()  # once more: what somebody put there meanwhile must not be replaced
        publish(staging, job.target, Path(job.target.path.name), force=job.force)
