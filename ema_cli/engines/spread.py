"""Have the tensor files of an averaging made by an engine: cut, send, gather."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType

from ema_cli.engines.dispatch import dispatch
from ema_cli.engines.engine import Engine, EngineError
from ema_cli.engines.finishing import Finishing
from ema_cli.engines.records import Done
from ema_cli.engines.sharing import FINISHING, MAKING, Sharing
from ema_cli.engines.tasks import Task
from ema_cli.engines.work import pack
from ema_cli.engines.worker import run_task
from ema_cli.engines.workplace import bytes_so_far
from ema_cli.errors import OutputError
from ema_cli.folding.fold import Folded
from ema_cli.job import Job
from ema_cli.passes import Pass
from ema_cli.storage.begun_parts import is_wanted
from ema_cli.storage.lease import LEASE_SECONDS, Held, Lease
from ema_cli.storage.output_stream import WrittenFile
from ema_cli.storage.staging.local import Sender, Staging
from ema_cli.storage.staging.shared import SharedStaging
from ema_cli.system.progress import ProgressCallback
from ema_cli.writing.record import Record

_PATIENCE_SECONDS = 5.0  # for tasks of workers that are not ours, when all is to end: they see it at their next block


class Spread(Sharing):
    """An averaging whose tensor files an engine makes, in a folder that all workers see.

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
        """Take what is to be done, and who does it; see `Sharing`.

        Args:
            job, fingerprints, checksum: see there.
            engine: does it.
            lease_seconds: after so long without a sign of life from here, workers end their work.
        """
        super().__init__(job, fingerprints, checksum=checksum, claims=True)
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._lease: Lease | None = None
        self._sent: set[Future[Done]] = set()

    def __enter__(self) -> Staging:
        self.staging.__enter__()
        if not isinstance(self.staging, SharedStaging):
            return self.staging  # its claim is the lease
        lease = self.staging.publishing(seconds=self._lease_seconds)
        try:
            lease.__enter__()
        except BaseException as error:
            self.staging.keep()  # it is another run's
            if isinstance(error, OutputError) and not self.staging.is_there():
                raise Held(
                    "another run of the same average has just ended", subject=self.staging.target, hint="run this again"
                ) from error
            if isinstance(error, Held):
                error.subject = self.staging.target  # which the user has named, unlike the folder of the lease
            raise
        self._lease = lease
        try:
            self._clear()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self.staging

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lease is not None and not self._lease.is_ours():
            self.staging.keep()  # it is another run's
        if self._lease is not None:
            self._lease.__exit__(kind, error, trace)  # from here on workers stop at their next block
        if error is not None:
            self._stop()
        if error is not None and is_wanted(self.staging.tasks, after_loss=isinstance(error, EngineError)):
            self.staging.keep()
        self.staging.__exit__(kind, error, trace)

    def _stop(self) -> None:
        """Let nobody do anything any more: what a worker puts after the clean-up nobody removes."""
        if self._engine.stop is not None:
            self._engine.stop()
        else:
            wait([future for future in self._sent if not future.done()], _PATIENCE_SECONDS)

    def __call__(
        self,
        one_pass: Pass,
        folders: Sequence[Path],
        sender: Sender | None,
        record: Record | None,
        progress: ProgressCallback,
    ) -> tuple[Folded, list[dict[str, WrittenFile]]]:
        """Have the tensor files of the averages of one pass made.

        Return what was done, and of each output the size and the sum of its files.

        Args:
            one_pass: the pass.
            folders: where the files of each output are made.
            sender: None.
            record: is told the sums of what is read; None where no manifest is made.
            progress: called now and then.

        Raises:
            EngineError: where workers are lost again and again, or the engine is.
            Held: where another run took this one for dead.
            EmaError: as averaging.
        """
        job, lease = one_pass.job, self._lease_of_workers(one_pass.job, folders)
        is_here = self._engine.is_here
        work, tasks = self._cut(one_pass, folders, summed=record is not None, lease=lease, synced=not is_here)
        packed, done = pack(work), list[Done]()
        making, finishing = ([task for task in tasks if task.step in steps] for steps in (MAKING, FINISHING))

        def send(some: Sequence[Task], note: Callable[[Sequence[Done]], None] = lambda ended: None) -> None:
            def tick(ended: Sequence[Done]) -> None:
                note(ended)
                progress(min(bytes_so_far([*done, *ended], work.tasks), job.bytes_to_read), job.bytes_to_read)

            describe: Callable[[Task], str] = lambda task: task.describe(job.outputs)  # noqa: E731
            done.extend(dispatch(self._engine, run_task, packed, some, describe, tick, self._sent))

        finished: list[Done] = []
        try:
            if is_here:
                with Finishing(work, tasks) as files:
                    send(making, files.note)
                    finished = files.finish(one_pass.sizes.threads)
            else:
                send(making)
                send(finishing)
        except OutputError as error:  # a worker sees that the lease is another one's, or that the folder is gone
            self._check_ours(error)
            raise
        if self._lease is not None:  # a claim is checked when all is put
            self._check_ours(None)
        self._done += done
        return self._gather(job, tasks, [*done, *finished], record)

    def _is_ours(self) -> bool:
        if not isinstance(self.staging, SharedStaging):
            return not self.staging.is_lost()
        return self._lease is None or self._lease.is_ours()

    def _check_ours(self, error: OutputError | None) -> None:
        """Check that no other run took this one for dead, as it does if this one stood still for long.

        Raises:
            Held: where one did.
        """
        if not self._is_ours():
            raise Held(
                f"another run went on with it: this one gave no sign of life for {self._lease_seconds:.0f} s",
                subject=self.staging.target,
                hint="wait for the end of that run",
            ) from error

    def _lease_of_workers(self, job: Job, folders: Sequence[Path]) -> tuple[Path, str, float]:
        """Return what workers look at: the lease, its owner, and when it is old. In a store it is the claim."""
        if isinstance(self.staging, SharedStaging):
            assert self._lease is not None, "entered"
            return self._lease.path.absolute(), self._lease.owner, self._lease_seconds
        self._expect(job, folders)
        return *self.staging.claim, LEASE_SECONDS
