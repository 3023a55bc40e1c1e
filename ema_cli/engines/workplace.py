"""Where a worker works: a folder that all see, or a store. What it makes there, tells of, and looks at meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ema_cli.engines.records import Done
from ema_cli.engines.tasks import Task
from ema_cli.engines.work import Work
from ema_cli.errors import OutputError
from ema_cli.storage.lease import Watch
from ema_cli.storage.location import location, names_in
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import output_errors
from ema_cli.storage.staging.local import Staging
from ema_cli.system.progress import ProgressCallback

_TOLD_SECONDS = 1.0  # after so long a task tells how far it is
_AT_SUFFIX = ".at"


def check_of(work: Work) -> Callable[[], None] | None:
    """Return what looks whether the one for whom the work is done is there; None where that is this process.

    It raises a LeaseLost where that one is gone.

    Raises:
        OutputError: where the folder is not there.
    """
    if work.lease is None:
        return None
    path, owner, seconds = work.lease
    if isinstance(path, StorePath):
        from ema_cli.storage.store.claim_watch import ClaimWatch  # which only those need who write to a store

        claim = ClaimWatch(path, seconds=seconds)
        return lambda: claim.check(owner)
    if not work.tasks.is_dir():
        raise OutputError(
            "the folder in which the average is made is not there",
            subject=work.tasks.parents[1],
            hint="name an output on a file system that all workers see under the same path",
        )
    watch = Watch(path, seconds=seconds)
    return lambda: watch.check(owner)


@contextmanager
def own_folder(tasks: Path, name: str) -> Iterator[Path]:
    """Yield the folder in which one try makes files: beside the output, or on this machine where that is a store."""
    if not isinstance(tasks, StorePath):
        yield tasks / name  # which goes with all that is in the making
        return
    from ema_cli.storage.staging.in_store import temporary_folder  # which only those need who write to a store

    with Staging(temporary_folder() / name) as staging:  # the next one there removes that of a worker that was killed
        yield staging.folder


def put_in_place(file: Path, place: Path) -> None:
    """Bring a file to where it belongs.

    Raises:
        OutputError: where that is refused.
    """
    if isinstance(place, StorePath):
        from ema_cli.storage.store.contents import put_file

        put_file(place, file)
        return
    location(place.parent).make_folder()
    with output_errors(place):
        file.replace(place)


@contextmanager
def telling(tasks: Path, task: Task, told: Callable[[int], None]) -> Iterator[ProgressCallback]:
    """Yield what tells now and then how many bytes are read: here, and to who looks into the folder."""
    path, last = tasks / f"{task.number:05}{_AT_SUFFIX}", time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        told(done)
        now = time.monotonic()
        if now - last >= _TOLD_SECONDS and not isinstance(path, StorePath):
            last = now
            with output_errors(path):
                path.write_text(str(done))

    try:
        yield tell
    finally:
        if not isinstance(path, StorePath):
            path.unlink(missing_ok=True)


def bytes_so_far(ended: Sequence[Done], tasks: Path) -> int:
    """Return how many bytes were read: by tasks that are done, and by others as far as they tell."""
    running = 0
    # What is wrong with the folder the tasks will say.
    for name in () if isinstance(tasks, StorePath) else names_in(tasks):
        if name.endswith(_AT_SUFFIX):
            with suppress(OSError, ValueError):  # it has just ended, or is just being written
                running += int((tasks / name).read_text())
    return sum(each.bytes_read for each in ended) + running
