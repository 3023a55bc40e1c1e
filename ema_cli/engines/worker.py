"""Do one task: fold its range of the output, write it, tell what became of it. Done twice, it gives the same bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.engines.checking import is_there
from ema_cli.engines.records import Done, read_done, write_done
from ema_cli.engines.task_fold import TaskFolded, fold_task, with_functions
from ema_cli.engines.tasks import Step, Task
from ema_cli.engines.work import Work, check_versions, unpack
from ema_cli.engines.workplace import check_of, own_folder, put_in_place, telling
from ema_cli.errors import EmaError
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.storage.direct_stream import DirectStream
from ema_cli.storage.lease import this_machine
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import OutputStream
from ema_cli.storage.segments import segments_for
from ema_cli.system.progress import ProgressCallback
from ema_cli.writing.files import FileSink, allow_descriptors, finish_files, make_sink
from ema_cli.writing.open_files import Storing, goes_past_cache
from ema_cli.writing.outputs import Output

if TYPE_CHECKING:  # which few averages need
    from ema_cli.writing.piece_sink import PieceSink

_ELEMENT_BYTES = 16  # of the widest, and more than of those that share bytes: the last one may end behind its stretch


def run_task(wanted: Mapping[str, str], packed: bytes, task: Task) -> Done:
    """Do a task in this process, for another one.

    Args:
        wanted: the versions of the one who asks.
        packed: the work, as `pack` made it.
        task: the task.

    Raises:
        UsageError: where this process has other versions.
        EmaError: as averaging; it names this worker.
    """
    with for_another(wanted) as worker:
        (work,) = unpack(packed)
        return do_task(work, task, worker)


@contextmanager
def for_another(wanted: Mapping[str, str]) -> Iterator[str]:
    """Yield the name of this process, which works for another one: its errors have this name.

    Raises:
        UsageError: where it has other versions than are wanted; before anything of these is opened.
    """
    check_versions(wanted, worker := name_of_worker())
    try:
        yield worker
    except EmaError as error:
        error.fact = f"{error.fact} (worker {worker})"
        raise


def name_of_worker() -> str:
    """Return the name of this process, for people."""
    return f"{os.uname().nodename}:{os.getpid()}"


def do_task(work: Work, task: Task, worker: str, told: Callable[[int], None] = lambda nbytes: None) -> Done:
    """Do a task, unless it is done already.

    Args:
        work: the averaging.
        task: the task.
        worker: who does it.
        told: is called now and then with the bytes read so far.

    Raises:
        EmaError: as averaging.
    """
    check = check_of(work)
    if check is not None:
        check()
    done = read_done(work.tasks, task, work.digest)
    if done is not None and is_there(work, task, done.sums):
        return replace(done, seconds=0.0, bytes_read=0, worker=worker)
    began = time.monotonic()
    outputs = [with_functions(work, output, number) for number, output in enumerate(task.select(work.outputs))]
    made: TaskFolded | None = None
    with telling(work.tasks, task, told) as progress:
        if task.step is Step.WHOLE:
            with own_folder(work.tasks, f"{task.number:05}-{os.urandom(4).hex()}") as folder:
                made, sums = _make_whole(work, outputs, folder, check, progress)
        elif task.step is Step.STRETCH:
            made, sums = _make_stretch(work, task, outputs, check, progress)
        else:
            sums = [_finish(work, output, number) for number, output in enumerate(outputs)]
    done = done_of(work, task, worker, began, sums, made)
    write_done(work.tasks, done)
    return done


def done_of(
    work: Work,
    task: Task,
    worker: str,
    began: float,
    sums: list[list[str]],
    made: TaskFolded | None = None,
) -> Done:
    """Return what became of a task.

    Args:
        work: the averaging.
        task: the task.
        worker: who did it.
        began: when, in seconds of the monotonic clock.
        sums: of each output those of its files.
        made: what was folded; None where nothing was.
    """
    ledgers = made.folded.non_finite if made is not None else []
    return Done(
        task.number,
        work.digest,
        worker,
        str(chosen_kernel()),
        time.monotonic() - began,
        made.folded.bytes_read if made is not None else 0,
        sums,
        [sorted(each.let_through) for each in ledgers] or [[] for _ in sums],
        [sorted(each.infinite) for each in ledgers] or [[] for _ in sums],
        made.checksums if made is not None else [],
        "" if work.synced or work.summed or task.step is not Step.STRETCH else this_machine() or "another",
    )


def _make_whole(
    work: Work, outputs: Sequence[Output], folder: Path, check: Callable[[], None] | None, progress: ProgressCallback
) -> tuple[TaskFolded, list[list[str]]]:
    """Make files in a folder of this try's own, then put them where they belong."""
    allow_descriptors(sum(len(output.files) for output in outputs), twice=work.segments > 0)
    with ExitStack() as stack:
        sinks: list[FileSink | PieceSink] = []
        storing = Storing(work.summed, segments=stack.enter_context(segments_for(work.segments)))
        for number, output in enumerate(outputs):
            sinks.append(make_sink(output, folder / str(number), storing))
            stack.callback(sinks[-1].close)
        made = fold_task(work, outputs, sinks, None, check, progress)
        streams = [stream for sink in sinks for stream in sink.streams]
        files = [file for output in outputs for file in output.files]
        rest = iter(finish_files(list(zip(files, streams, strict=True)), work.sizes.threads))
        sums = [[next(rest) for _ in output.files] for output in outputs]
    for number, output in enumerate(outputs):
        for file in output.files:
            put_in_place(folder / str(number) / file.name, work.folders[number] / file.name)
    return made, sums


def _make_stretch(
    work: Work, task: Task, outputs: Sequence[Output], check: Callable[[], None] | None, progress: ProgressCallback
) -> tuple[TaskFolded, list[list[str]]]:
    """Write a stretch of one file of each output, beside others who write other stretches.

    What is summed up is read again in the end, by the one who asks, and goes by the page cache.
    """
    with ExitStack() as stack:
        sinks, streams = [], list[OutputStream]()
        segments = stack.enter_context(segments_for(0 if work.summed else work.segments))
        allow_descriptors(len(outputs), twice=segments is not None)
        for number, output in enumerate(outputs):
            (file,) = output.files
            place = work.folders[number] / file.name
            location(place.parent).make_folder()
            begin, end = (file.header_size + at for at in (task.begin, task.end))
            if segments is not None and goes_past_cache(file):
                last = min(end + _ELEMENT_BYTES, file.size)
                streams.append(DirectStream(place, last, segments, summed=False, synced=work.synced, shared=True))
            else:
                stretch = begin, end
                streams.append(
                    OutputStream(place, summed=work.summed, synced=work.synced, shared=True, stretch=stretch)
                )
            stack.callback(streams[-1].close)
            streams[-1].extend(file.size)
            sinks.append(FileSink.into(output, streams[-1]))
        made = fold_task(work, outputs, sinks, task.parts(outputs[0]), check, progress)
        for stream in streams:
            stream.sync()
        return made, [[stream.crc32()] for stream in streams]


def _finish(work: Work, output: Output, number: int) -> list[str]:
    """Complete a file whose stretches are all there; return its sum."""
    (file,) = output.files
    place = work.folders[number] / file.name
    stream = OutputStream(place, summed=work.summed, shared=True)
    stream.extend(file.size)
    try:
        stream.write(0, file.header, noted=False)
        return finish_files([(file, stream)], 1)
    finally:
        stream.close()
