"""Files that workers of this machine write in stretches: summed up here while they are made, not at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType

from ema_cli.engines.records import Done
from ema_cli.engines.tasks import Step, Task
from ema_cli.engines.work import Work
from ema_cli.engines.worker import done_of, name_of_worker
from ema_cli.formats.output_file import FramedFile, OutputFile
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import OutputStream
from ema_cli.system.threads import reading_pool, thread_errors
from ema_cli.writing.files import allow_descriptors, finish_files
from ema_cli.writing.outputs import Output

_Files = list[tuple[OutputFile, OutputStream]]


class Finishing:
    """The files of the tasks that finish files, each open from the first stretch to the last; a context manager.

    On another machine a page of a file that is open may be older than what a worker has written: there a worker
    finishes it, once all is there.
    """

    def __init__(self, work: Work, tasks: Sequence[Task]) -> None:
        """Take the averaging, and all its tasks."""
        self._work = work
        self._tasks = {task.number: task for task in tasks}
        self._files: dict[tuple[tuple[int, ...], ...], _Files] = {}
        self._noted = 0
        self._summing: list[Future[None]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Finishing:
        finishing = [task for task in self._tasks.values() if task.step is Step.FINISH]
        allow_descriptors(len(finishing) * len(self._work.outputs))
        with ExitStack() as stack:
            for task in finishing:
                opened = [self._open(stack, *each) for each in enumerate(task.select(self._work.outputs))]
                self._files[task.files] = opened
            self._pool = stack.enter_context(reading_pool(1, "sum"))  # ends first: it reads the files
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack, number: int, output: Output) -> tuple[OutputFile, OutputStream]:
        """Begin a file of an output with its header."""
        (file,) = output.files
        place = self._work.folders[number] / file.name
        location(place.parent).make_folder()
        stream = OutputStream(place, summed=self._work.summed, shared=True)
        stack.callback(stream.close)
        stream.write(0, file.header)
        return file, stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for files in self._files.values():
                for _, stream in files:
                    stream.give_up()
        self._stack.__exit__(kind, error, trace)

    def note(self, ended: Sequence[Done]) -> None:
        """Sum up what tasks have written that ended since the last call, in a thread of its own."""
        for done in ended[self._noted :]:
            task = self._tasks[done.number]
            if task.step is Step.STRETCH:
                with thread_errors():
                    self._summing.append(self._pool.submit(self._sum, task))
        self._noted = len(ended)

    def _sum(self, task: Task) -> None:
        for file, stream in self._files[task.files]:
            if not isinstance(file, FramedFile):  # else what stands between the tensors is written at the end
                stream.note(file.header_size + task.begin, file.header_size + task.end)

    def finish(self, threads: int) -> list[Done]:
        """Complete the files, and return what became of their tasks.

        Raises:
            OutputError: where one cannot be read or written.
        """
        for future in self._summing:
            future.result()
        done = []
        for task in (task for task in self._tasks.values() if task.step is Step.FINISH):
            began = time.monotonic()
            sums = finish_files(self._files[task.files], threads)
            done.append(done_of(self._work, task, name_of_worker(), began, [[each] for each in sums]))
        return done
