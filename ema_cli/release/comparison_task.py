"""Have an average compared with its checkpoints by an engine: the same cuts as when it is made, and nothing written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ema_cli.dataclass import dataclass
from ema_cli.engines.dispatch import dispatch
from ema_cli.engines.engine import Engine
from ema_cli.engines.records import Done
from ema_cli.engines.sharing import MAKING
from ema_cli.engines.task_checksums import together
from ema_cli.engines.task_fold import fold_task
from ema_cli.engines.tasks import Step, Task, cut_tasks
from ema_cli.engines.work import Work, pack, unpack
from ema_cli.engines.worker import done_of, for_another
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.fold import Folded
from ema_cli.folding.non_finite import NonFinite
from ema_cli.job import Job
from ema_cli.release.byte_comparison import Comparison
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.record import Record


@dataclass(frozen=True, slots=True)
class Compared:
    """A task whose range is compared: as one that is done, and of each tensor the bytes that differ, and the first."""

    done: Done
    differences: list[tuple[str, int, int]]


def compare_by(
    engine: Engine, job: Job, comparison: Comparison, record: Record, sizes: BufferSizes, progress: ProgressCallback
) -> Folded:
    """Have the average of a job compared by an engine.

    Args:
        engine: does it.
        job: the average.
        comparison: what it is compared with; takes the differences.
        record: is told the sums of what is read.
        sizes: threads and memory of one task.
        progress: called now and then.

    Raises:
        EngineError: where workers are lost again and again, or the engine is.
        EmaError: as averaging.
    """
    work = Work.of(job, sizes, checksum=record.checksums is not None)
    packed = pack(work, comparison)
    tasks = [task for task in cut_tasks(job.outputs, shared_files=True) if task.step in MAKING]

    def tick(ended: Sequence[Compared]) -> None:
        progress(sum(each.done.bytes_read for each in ended), job.bytes_to_read)

    compared = dispatch(engine, run_comparison, packed, tasks, lambda task: task.describe(job.outputs), tick, set())
    non_finite = NonFinite(job.checkpoints, allowed=job.options.allow_non_finite)
    for each in compared:
        comparison.add(each.differences)
        non_finite.let_through.update(each.done.let_through[0])
        non_finite.infinite.update(each.done.infinite[0])
    if record.checksums is not None:
        record.checksums = together(len(job.checkpoints), (sums for each in compared for sums in each.done.blocks))
    return Folded(sum(each.done.bytes_read for each in compared), [non_finite])


def run_comparison(wanted: Mapping[str, str], packed: bytes, task: Task) -> Compared:
    """Compare the range of a task in this process, for another one; see `engines.worker.run_task`.

    Raises:
        UsageError: where this process has other versions.
        EmaError: as averaging; it names this worker.
    """
    began = time.monotonic()
    with for_another(wanted) as worker:
        work, whole = unpack(packed)
        comparison = whole.again()
        outputs = task.select(work.outputs)
        parts = task.parts(outputs[0]) if task.step is Step.STRETCH else None
        made = fold_task(work, outputs, [comparison], parts, None, no_progress)
    done = done_of(work, task, worker, began, [[] for _ in outputs], made)
    return Compared(done, [(name, each.nbytes, each.first) for name, each in comparison.different.items()])
