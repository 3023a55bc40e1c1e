"""A candidate on the disk: it loads as any output does, and gets sums and manifest only if it wins.

To sum up and to wait for the disk takes as long as to average, and all candidates but one are removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ema_cli.averaging import check_unchanged, check_values, jumps
from ema_cli.comparing.jumps import WeightSamples
from ema_cli.dataclass import dataclass
from ema_cli.folding.fold import Factored
from ema_cli.folding.non_finite import NonFinite
from ema_cli.job import Job
from ema_cli.making import fold_here
from ema_cli.manifest.types import Manifest, TuneRow
from ema_cli.passes import Pass, keep_more_blocks, plan_passes
from ema_cli.planning.advice import factored_note, non_finite_warnings
from ema_cli.planning.plan import Plan
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.info import Info
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import OutputStream
from ema_cli.system.progress import ProgressCallback, part_of
from ema_cli.writing.files import read_all_back, write_small_files
from ema_cli.writing.loading import loading_notes
from ema_cli.writing.open_files import finishing
from ema_cli.writing.outputs import Output
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target


@dataclass(frozen=True, slots=True)
class Candidate:
    """One average in a folder of its own, where nothing else is.

    Attributes:
        folder: holds the files of the average; of one that is a folder, it is that.
        output: its files.
        plan: the plan that it follows.
        record: knows the inputs as they were when it was made: they may be gone when it wins.
        manifest: its manifest, still without the sums of its files.
        non_finite: which of its tensors are not finite.
        notes: what is worth knowing of its checkpoints, as `result.Result` has it.
        files: what lies in the folder, as it was made.
    """

    folder: Path
    output: Output
    plan: Plan
    record: Record
    manifest: Manifest
    non_finite: NonFinite
    notes: Sequence[str]
    files: Mapping[Path, Info]

    @property
    def path(self) -> Path:
        """Return the path of the average."""
        return self.output.target.path

    def is_changed(self) -> bool:
        """Return whether anything in the folder is not as it was made: an evaluation may write where it likes."""
        return _look(self.folder) != self.files

    def remarks(self, target: Target) -> Remarks:
        """Return what `average` would say of it at `target`, but for what the run and the plan say."""
        notes = loading_notes([self.plan], [replace(self.output, target=target)])
        return Remarks(tuple(non_finite_warnings(sorted(self.non_finite.let_through))), (*self.notes, *notes))

    def finish(self, tune: TuneRow, threads: int) -> None:
        """Bring it to the disk, with sums and manifest, a part `tune` in it: so it is as `average` leaves its output.

        Raises:
            OutputError: where the file system refuses.
        """
        rows = self.manifest["outputs"]
        for row, sha256 in zip(rows, _settle([self.folder / row["name"] for row in rows], threads), strict=True):
            row["sha256"] = sha256
        self.manifest["tune"] = tune
        self.record.write(self.manifest, self.output, self.plan, self.folder, self.non_finite)


def make_candidates(
    job: Job, threads: int | None, max_memory: int | None, progress: ProgressCallback
) -> list[Candidate]:
    """Make the averages of a job, each whole, in the order of their plans; they are checked as those of `average` are.

    Raises:
        EmaError: as `averaging.perform`.
    """
    passes = plan_passes(job, threads, max_memory)
    if max_memory is not None:
        keep_more_blocks(passes, max_memory)
    notes = check_values(job)
    samples = WeightSamples(len(job.checkpoints))
    record = Record(
        job.checkpoints,
        job.options,
        job.copied,
        checksum=False,
        threads=passes[-1].sizes.threads,
        remarks=Remarks(),
        watch=samples.add,
    )
    notes += jumps(job, samples)
    made: list[Candidate] = []
    read, total = 0, sum(each.job.bytes_to_read for each in passes)
    for each in passes:
        read += _make(each, record, notes, made, part_of(progress, read, total))
    check_unchanged(job)
    return made


def _make(
    one_pass: Pass, record: Record, notes: Sequence[str], made: list[Candidate], progress: ProgressCallback
) -> int:
    """Make the averages of one pass; return how many bytes were read."""
    job = one_pass.job
    folders = [_make_folder(output) for output in job.outputs]
    folded, written = fold_here(one_pass, folders, None, None, progress, synced=False)
    several_factored: Sequence[Factored | None] = folded.factored or [None] * len(job.outputs)
    for output, plan, folder, files, non_finite, factored in zip(
        job.outputs, job.plans, folders, written, folded.non_finite, several_factored, strict=True
    ):
        files |= write_small_files(output, folder, synced=False)
        read_all_back(output, folder, plan.newest, plan.run.options.read)
        manifest = record.manifest(output, plan, files, non_finite, factored)
        own = [*notes, factored_note(factored)] if factored is not None else notes
        made.append(Candidate(folder, output, plan, record, manifest, non_finite, own, _look(folder)))
    return folded.bytes_read


def _make_folder(output: Output) -> Path:
    """Make the folder for the files of an output, which is that or lies around it."""
    folder = output.target.path if output.target.is_folder else output.target.path.parent
    location(folder).make_folder()
    return folder


def _look(folder: Path) -> dict[Path, Info]:
    """Return all that a folder holds, and when it was last changed."""
    return {path: location(path).info(follow=False) for path in folder.rglob("*")}


def _settle(paths: Sequence[Path], threads: int) -> list[str]:
    """Return the sha256 of files, and wait until the disk has all of them, both at once.

    Raises:
        OutputError: where the file system refuses.
    """
    with ExitStack() as stack:
        streams = []
        for path in paths:
            streams.append(OutputStream(path, shared=True))
            stack.callback(streams[-1].close)
        with finishing(streams, max(threads, 2)) as pool:
            synced = pool.map(OutputStream.sync, streams)
            sums = list(pool.map(OutputStream.sha256, streams))
            list(synced)
    return sums
