"""What several who make one average share: its digest, the folder that all see, what becomes of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.engines.digest import alike_in_all, decided, digest_of
from ema_cli.engines.records import Done
from ema_cli.engines.task_checksums import together
from ema_cli.engines.tasks import Step, Task, cut_tasks
from ema_cli.engines.work import Work
from ema_cli.errors import UsageError, option
from ema_cli.folding.fold import Folded
from ema_cli.folding.non_finite import NonFinite
from ema_cli.job import Job
from ema_cli.passes import Pass
from ema_cli.storage.location import location
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import WrittenFile
from ema_cli.storage.staging.shared import SharedStaging
from ema_cli.text import size
from ema_cli.writing.files import make_folder
from ema_cli.writing.record import Record

if TYPE_CHECKING:
    from ema_cli.storage.staging.shared_in_store import SharedStoreStaging

MAKING, FINISHING = (Step.WHOLE, Step.STRETCH), (Step.FINISH,)
"""Tasks that may be done in any order, and those that come after all of these."""


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What one worker did.

    Attributes:
        worker: its name.
        kernel: what did the arithmetic there.
        tasks: how many.
        seconds: how long they took, one after another.
        bytes_read: of tensors.
    """

    worker: str
    kernel: str
    tasks: int
    seconds: float
    bytes_read: int


class Sharing:
    """One averaging that several make: workers of an engine, or parts.

    Attributes:
        staging: the folder that all of them see.
    """

    def __init__(self, job: Job, fingerprints: Sequence[str], *, checksum: bool, claims: bool) -> None:
        """Take what is to be done.

        Args:
            job: the averaging.
            fingerprints: of its checkpoints.
            checksum: whether all that is read is summed up.
            claims: whether this process has the claim on an output in a store from the beginning.

        Raises:
            UsageError: for an output that cannot be made so.
        """
        self._checksum = checksum
        said = decided(job, fingerprints, checksum=checksum)
        self._alike = alike_in_all(said)
        self._digest = digest_of(said)
        self.staging = self._staging_of(job, claims=claims)
        self._done: list[Done] = []
        self._job = job

    def _staging_of(self, job: Job, *, claims: bool) -> SharedStaging | SharedStoreStaging:
        path = job.target.path
        if not isinstance(path, StorePath):
            return SharedStaging(path, self._digest)
        from ema_cli.storage.staging.shared_in_store import (  # which only those need who write there
            MOST_COPIED,
            SharedStoreStaging,
        )

        large = next((file for output in job.outputs for file in output.files if file.size > MOST_COPIED), None)
        if large is not None:
            raise UsageError(
                f"{large.name} has {size(large.size)}, and a store copies at most {size(MOST_COPIED)} at once",
                subject=path,
                hint=f"write a folder of smaller shards: {option('max_shard_size', '5GB')}",
            )
        return SharedStoreStaging(path, self._digest, claims=claims)

    def _clear(self) -> None:
        """Make room for what this process makes that has the claim on the publishing: one that died may have begun."""
        if isinstance(self.staging, SharedStaging):
            folders = [make_folder(self.staging, self._job.target, output.target) for output in self._job.outputs]
            both = zip(self._job.outputs, folders, strict=True)
            self.staging.clear({folder / file.name for output, folder in both for file in output.files})

    @property
    def shares(self) -> tuple[WorkerShare, ...]:
        """Return what each worker did."""
        workers: dict[tuple[str, str], list[Done]] = {}
        for each in self._done:
            workers.setdefault((each.worker, each.kernel), []).append(each)
        return tuple(
            WorkerShare(worker, kernel, len(own), sum(one.seconds for one in own), sum(one.bytes_read for one in own))
            for (worker, kernel), own in sorted(workers.items())
        )

    @property
    def kernels(self) -> str:
        """Return what did the arithmetic, of all workers."""
        return ", ".join(sorted({share.kernel for share in self.shares}))

    def _cut(
        self,
        one_pass: Pass,
        folders: Sequence[Path],
        *,
        summed: bool,
        lease: tuple[Path, str, float] | None,
        synced: bool = True,
    ) -> tuple[Work, list[Task]]:
        """Return the tasks of a pass, and what they have in common; see `Work`."""
        job = one_pass.job
        first = "-".join(output.target.path.name for output in (job.outputs[0], job.outputs[-1]))
        tasks = self.staging.tasks / f"{len(job.outputs)}-{first}"
        location(tasks).make_folder()
        is_stored = isinstance(tasks, StorePath)
        work = replace(
            Work.of(job, one_pass.sizes, checksum=self._checksum),
            digest=self._digest,
            folders=[self.staging.folder_of(folder) for folder in folders],
            summed=summed,
            synced=synced,
            segments=one_pass.segments,
            tasks=tasks.absolute(),
            lease=lease,
        )
        return work, cut_tasks(job.outputs, shared_files=not is_stored)

    def _expect(self, job: Job, folders: Sequence[Path]) -> None:
        """Tell a store which files its workers make."""
        if not isinstance(self.staging, SharedStaging):
            for output, folder in zip(job.outputs, folders, strict=True):
                self.staging.expect(folder, {file.name: file.size for file in output.files})

    def _gather(
        self, job: Job, tasks: Sequence[Task], done: Sequence[Done], record: Record | None
    ) -> tuple[Folded, list[dict[str, WrittenFile]]]:
        """Return what the tasks of a job did together; of each output the size and the sum of its files."""
        if record is not None and self._checksum:
            record.checksums = together(len(job.checkpoints), (block for each in done for block in each.blocks))
        by_number = {each.number: each for each in done}
        non_finite = [NonFinite(job.checkpoints, allowed=job.options.allow_non_finite) for _ in job.outputs]
        written: list[dict[str, WrittenFile]] = [{} for _ in job.outputs]
        for task in tasks:
            each = by_number[task.number]
            for ledger, through, infinite in zip(non_finite, each.let_through, each.infinite, strict=True):
                ledger.let_through.update(through)
                ledger.infinite.update(infinite)
            if task.step is not Step.STRETCH:
                for files, output, numbers, sums in zip(written, job.outputs, task.files, each.sums, strict=True):
                    for number, sha256 in zip(numbers, sums, strict=True):
                        file = output.files[number]
                        files[file.name] = WrittenFile(file.size, sha256)
        ordered = [
            {file.name: files[file.name] for file in output.files}
            for output, files in zip(job.outputs, written, strict=True)
        ]
        return Folded(sum(each.bytes_read for each in done), non_finite), ordered
