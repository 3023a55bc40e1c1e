"""Make the tensor files of an averaging by an engine: cut, send, gather."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ema_cli.dataclass import dataclass
from ema_cli.engines.block_sums import together
from ema_cli.engines.digest import digest_of
from ema_cli.engines.dispatch import dispatch
from ema_cli.engines.engine import Engine, EngineError
from ema_cli.engines.records import Done
from ema_cli.engines.tasks import Step, Task, cut_tasks
from ema_cli.engines.work import Work, pack
from ema_cli.engines.worker import AT_SUFFIX
from ema_cli.errors import UsageError, option
from ema_cli.folding.fold import Folded
from ema_cli.folding.non_finite import NonFinite
from ema_cli.job import Job
from ema_cli.passes import Pass
from ema_cli.storage.lease import LEASE_SECONDS, Lease
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import WrittenFile
from ema_cli.storage.staging import Sender, SharedStaging
from ema_cli.system.progress import ProgressCallback
from ema_cli.writing.record import Record

_PATIENCE_SECONDS = 5.0  # for tasks that run when all is to end: they see it at their next block
LEASE_NAME = "lease"


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


class Spread:
    """Has the tensor files of an averaging made by an engine, in a folder that all workers see.

    A context manager that yields this folder; a call makes the files.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        fingerprints: Sequence[str],
        *,
        checksum: bool,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """Take what is to be done.

        Args:
            job: the averaging.
            engine: does it.
            fingerprints: of its checkpoints.
            checksum: whether all that is read is summed up.
            lease_seconds: after so long without a sign of life from here, workers end their work.

        Raises:
            UsageError: for an output that no task makes.
        """
        if job.options.exact_lora is not None:
            raise UsageError(
                f"averages products of adapters, which {option('on')} does not: they are small",
                option="exact_lora",
                hint=f"leave out {option('on')}",
            )
        self._checksum = checksum
        self._digest = digest_of(job, fingerprints, checksum=checksum)
        self._staging = SharedStaging(job.target.path, self._digest)
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._lease: Lease | None = None
        self._sent: set[Future[Done]] = set()
        self._done: list[Done] = []

    def __enter__(self) -> SharedStaging:
        self._staging.__enter__()
        lease = Lease(self._staging.tasks / LEASE_NAME, seconds=self._lease_seconds)
        try:
            lease.__enter__()
        except BaseException:
            self._staging.keep()  # it is another run's
            raise
        self._lease = lease
        return self._staging

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lease is not None:
            self._lease.__exit__(kind, error, trace)  # from here on workers stop at their next block
        if error is not None:
            wait([future for future in self._sent if not future.done()], _PATIENCE_SECONDS)
        if isinstance(error, EngineError):
            self._staging.keep()
        self._staging.__exit__(kind, error, trace)

    def __call__(
        self,
        part: Pass,
        folders: Sequence[Path],
        sender: Sender | None,
        record: Record | None,
        progress: ProgressCallback,
    ) -> tuple[Folded, list[dict[str, WrittenFile]]]:
        """Have the tensor files of the averages of one pass made.

        Return what was done, and of each output the size and the sum of its files.

        Args:
            part: the pass.
            folders: where the files of each output are made.
            sender: None.
            record: is told the sums of what is read; None where no manifest is made.
            progress: called now and then.

        Raises:
            EngineError: where workers are lost again and again, or the engine is.
            EmaError: as averaging.
        """
        assert self._lease is not None, "entered"
        job, tasks_folder = part.job, self._staging.tasks / f"from-{len(self._done)}"
        location(tasks_folder).make_folder()
        work = Work(
            self._digest,
            job.tied,
            job.weights,
            [job.checkpoints.index(plan.newest) for plan in job.plans],
            job.outputs,
            [folder.absolute() for folder in folders],
            job.copied,
            job.options.allow_non_finite,
            summed=record is not None,
            checksum=self._checksum,
            sizes=part.sizes,
            tasks=tasks_folder.absolute(),
            lease=(self._lease.path.absolute(), self._lease.owner, self._lease_seconds),
        )
        packed, tasks, done = pack(work), cut_tasks(job.outputs, shared_files=True), list[Done]()

        def tick(ended: Sequence[Done]) -> None:
            progress(min(_bytes_so_far([*done, *ended], tasks_folder), job.bytes_to_read), job.bytes_to_read)

        for steps in ((Step.WHOLE, Step.STRETCH), (Step.FINISH,)):
            now = [task for task in tasks if task.step in steps]
            done += dispatch(self._engine, packed, now, lambda task: task.describe(job.outputs), tick, self._sent)
        self._done += done
        if record is not None and self._checksum:
            record.checksums = together(len(job.checkpoints), (block for each in done for block in each.blocks))
        return _gather(job, tasks, done)

    @property
    def shares(self) -> tuple[WorkerShare, ...]:
        """Return what each worker did."""
        return _shares(self._done)

    @property
    def kernels(self) -> str:
        """Return what did the arithmetic, of all workers."""
        return ", ".join(sorted({share.kernel for share in self.shares}))


def _gather(job: Job, tasks: Sequence[Task], done: Sequence[Done]) -> tuple[Folded, list[dict[str, WrittenFile]]]:
    """Return what the tasks of a job did together, each of which was done once."""
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


def _shares(done: Sequence[Done]) -> tuple[WorkerShare, ...]:
    workers: dict[tuple[str, str], list[Done]] = {}
    for each in done:
        workers.setdefault((each.worker, each.kernel), []).append(each)
    return tuple(
        WorkerShare(worker, kernel, len(own), sum(each.seconds for each in own), sum(each.bytes_read for each in own))
        for (worker, kernel), own in sorted(workers.items())
    )


def _bytes_so_far(ended: Sequence[Done], tasks: Path) -> int:
    """Return how many bytes were read: by tasks that are done, and by others as far as they tell."""
    running = 0
    for name in location(tasks).names():
        if name.endswith(AT_SUFFIX):
            with suppress(OSError, ValueError):  # it has just ended, or is just being written
                running += int((tasks / name).read_text())
    return sum(each.bytes_read for each in ended) + running
