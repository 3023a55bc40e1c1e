"""Parts of an average, made by processes that know nothing of each other but a folder that all see: no engine.

Every part makes its own tasks. Whoever finds that all are done tries to claim the publishing; one does, checks every
sum, and publishes.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ema_cli.engines.part import Part
from ema_cli.engines.records import Done, is_done
from ema_cli.engines.sharing import FINISHING, MAKING, Sharing
from ema_cli.engines.tasks import Task, cut_tasks
from ema_cli.engines.work import Work
from ema_cli.engines.worker import do_task, name_of_worker
from ema_cli.errors import Missing, OutputError, UsageError, option
from ema_cli.folding.fold import Folded
from ema_cli.job import Job
from ema_cli.passes import Pass
from ema_cli.preparing import lay_out
from ema_cli.storage.begun_parts import PASSES, BegunPart, others_at
from ema_cli.storage.lease import Held
from ema_cli.storage.location import location, look_anew
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import WrittenFile
from ema_cli.storage.staging.local import Sender, Staging
from ema_cli.system.progress import ProgressCallback
from ema_cli.system.threads import reading_pool
from ema_cli.writing.files import make_folder
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target

_MEGABYTE, _SHARD_BYTES = 10**6, 5 * 10**9


class Parts(Sharing):
    """An averaging of which this process makes one part, and perhaps publishes all.

    A context manager that yields the folder that all parts see.

    Attributes:
        part: which part this process makes.
        waiting: how many tasks of other parts are not done.
        others: in words, parts that were begun there, and make no whole with this one.
    """

    def __init__(self, job: Job, part: Part, fingerprints: Sequence[str], *, checksum: bool) -> None:
        if job.options.exact_lora is not None:
            raise UsageError(
                f"averages products of adapters, which are small: {option('part')} does not",
                option="exact_lora",
                hint=f"leave out {option('part')}",
            )
        super().__init__(job, fingerprints, checksum=checksum, claims=False)
        if isinstance(job.target.path, StorePath) and len(cut_tasks(job.outputs, shared_files=False)) < 2:
            raise UsageError(
                "is one file in a store, in which each part makes whole files only"
                if len(job.outputs[0].files) == 1
                else "is so small that one part makes all of its files",
                subject=job.target.path,
                hint=_hint_at_files(job, part),
            )
        self.part = part
        self.waiting = 0
        self.others: tuple[str, ...] = ()
        self._stack = ExitStack()
        self._is_over = False  # nobody needs the folder any more

    def __enter__(self) -> Staging:
        return self.staging.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if error is not None or not self._is_over:
            self.staging.keep()  # the other parts go on in it
        self.staging.__exit__(kind, error, trace)

    def make(self, passes: Sequence[Pass], target_job: Job, record: Record | None, progress: ProgressCallback) -> bool:
        """Make this part of all passes; return whether this process is to publish the whole.

        Args:
            passes: those of the averaging.
            target_job: the averaging.
            record: looks whether all is published already; None where no manifest is made.
            progress: called now and then with the bytes that were read, and that this part reads.

        Raises:
            EmaError: as averaging.
        """
        if _is_made(target_job, record):
            self._is_over = True
            return False
        try:
            target_job.check_target()
        except OutputError:
            self.staging.remove_empty()  # nobody goes on where nothing was made
            raise
        try:
            return self._make(passes, target_job, record, progress)
        except (OutputError, Missing) as error:
            if self.staging.is_there():
                raise
            if _is_published(target_job, record):
                self._is_over = True
                return False  # another one has published, and removed the folder
            if isinstance(self.staging.tasks, StorePath):  # where nothing may have been put yet
                raise
            raise OutputError(
                "was removed by another run of the same average, which published nothing",
                subject=self.staging.tasks.parent,
                hint="run this part again",
            ) from error

    def _make(self, passes: Sequence[Pass], target_job: Job, record: Record | None, progress: ProgressCallback) -> bool:
        everything: list[tuple[Work, list[Task]]] = []
        with self.staging.working(f"part-{self.part.number}-{os.urandom(4).hex()}"):
            for each in passes:
                folders = [make_folder(self.staging, target_job.target, output.target) for output in each.job.outputs]
                work, tasks = self._cut(each, folders, summed=record is not None, lease=None)
                everything.append((work, [task for task in tasks if task.step in MAKING]))
            begun = self._tell(target_job, everything)
            for each, (work, tasks) in zip(passes, everything, strict=True):
                self._make_own(work, tasks, each.job.bytes_to_read, progress)
        try:
            # Looked for after the last thing that this part wrote: so the last one sees all, whatever is cached.
            self.waiting = _count_waiting(everything)
            if self.waiting:
                self.others = tuple(others_at(target_job.target.path, begun))
                return False
            self._stack.enter_context(self.staging.publishing())
        except Held:
            return False  # another one publishes
        if not self.staging.is_there():
            return False
        # Meanwhile another one may have published, and removed the folder, and a third may have made it anew.
        if (record is not None or not target_job.force) and _is_published(target_job, record):
            self._is_over = True
            return False
        self.waiting = _count_waiting(everything)
        if self.waiting:
            return False
        self._clear()
        self._is_over = True
        return True

    def _tell(self, job: Job, everything: Sequence[tuple[Work, Sequence[Task]]]) -> BegunPart:
        """Tell who looks which part this is, and which tasks are its own."""
        own = {work.tasks.name: [task.number for task in share_of(tasks, self.part)] for work, tasks in everything}
        passes = "1 pass" if len(everything) == 1 else f"{len(everything)} passes"
        alike = {**self._alike, PASSES: passes}  # whose tasks are others
        begun = BegunPart(self.part.number, self.part.count, job.target.path.name, own, alike)
        begun.write(self.staging.tasks)
        return begun

    def _make_own(self, work: Work, tasks: Sequence[Task], bytes_to_read: int, progress: ProgressCallback) -> None:
        """Make those of some tasks that are this part's."""
        own, worker, before = share_of(tasks, self.part), name_of_worker(), 0
        total = bytes_to_read * sum(task.nbytes for task in own) // max(sum(task.nbytes for task in tasks), 1)

        def told(read: int) -> None:
            progress(min(before + read, total), total)

        for task in own:
            self._done.append(do_task(work, task, worker, told))
            before += self._done[-1].bytes_read

    def __call__(
        self,
        one_pass: Pass,
        folders: Sequence[Path],
        sender: Sender | None,
        record: Record | None,
        progress: ProgressCallback,
    ) -> tuple[Folded, list[dict[str, WrittenFile]]]:
        """Check the sums of all that the parts made of one pass, and complete it; see `Spread`."""
        work, tasks = self._cut(one_pass, folders, summed=record is not None, lease=None)
        self._expect(one_pass.job, folders)
        worker, done = name_of_worker(), list[Done]()
        for steps in (MAKING, FINISHING):
            now = [task for task in tasks if task.step in steps]
            with reading_pool(one_pass.sizes.threads, "check") as pool:
                done += pool.map(lambda task: do_task(work, task, worker), now)
        return self._gather(one_pass.job, tasks, done, record)


def _hint_at_files(job: Job, part: Part) -> str:
    """Return how an output gets files for several parts, or what to do where its tensors are too few or too small."""
    total, form = sum(file.table.nbytes for file in job.outputs[0].files), job.options
    each = min(_SHARD_BYTES, -(-total // max(part.count, 2)))
    shard = each if each < _MEGABYTE else -(-each // _MEGABYTE) * _MEGABYTE
    if not form.like_input and not any(output.target.is_dcp for output in job.outputs):
        targets = [_as_folder(output.target) for output in job.outputs]
        outputs = lay_out(job.plans, targets, replace(form, max_shard_size=shard), manifest=job.manifest).outputs
        if len(cut_tasks(outputs, shared_files=False)) > 1:
            text = f"{shard // _MEGABYTE}MB" if shard % _MEGABYTE == 0 else f"{shard}B"
            folder = option("o", str(_as_folder(job.target).path))
            return f"write a folder of shards: {folder} {option('max_shard_size', text)}"
    return f"its tensors are too few, or too small, for several files: leave out {option('part')}"


def _as_folder(target: Target) -> Target:
    return target if target.is_folder else replace(target, path=target.path.with_suffix(""), is_folder=True)


def share_of(tasks: Sequence[Task], part: Part) -> list[Task]:
    """Return the tasks of a part: all parts get about as many bytes."""
    loads = [(0, number) for number in range(part.count)]
    own = []
    for task in sorted(tasks, key=lambda task: (-task.nbytes, task.number)):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + task.nbytes + 1, number))
        if number == part.number:
            own.append(task)
    return sorted(own, key=lambda task: task.number)


def _is_made(job: Job, record: Record | None) -> bool:
    """Return whether all is published. What is to be replaced, if need be, is read: it may be damaged."""
    return record is not None and all(
        record.is_made(output, plan, thorough=job.force) for output, plan in zip(job.outputs, job.plans, strict=True)
    )


def _is_published(job: Job, record: Record | None) -> bool:
    """Return whether all is published meanwhile; without manifests, whether something is."""
    look_anew([job.target.path])
    return _is_made(job, record) or (record is None and location(job.target.path).info().exists)


def _count_waiting(everything: Iterable[tuple[Work, Sequence[Task]]]) -> int:
    """Return how many tasks are not done, by what they told in the folder of each pass.

    Raises:
        Missing: where a folder is gone.
    """
    waiting = 0
    for work, tasks in everything:
        look_anew([work.tasks])
        names = frozenset(location(work.tasks).names())
        waiting += sum(not is_done(names, task) for task in tasks)
    return waiting
