"""The memory of a fold: how much there is, and how it is divided among threads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.folding.kernel import Kernel, WorkspaceSize
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.storage.names import StorePath

DEFAULT_BYTES = 64 << 20
_STORE_BYTES = 128 << 20  # where checkpoints lie in a store
_STORE_ROW_BYTES = 1 << 21  # one request: smaller ones cost the store more than they bring
_STORE_ROWS = 8
_LEAST_ROWS = 2
_SHORT_ROW_BYTES = 1 << 17  # rather fewer rows than shorter ones
_LEAST_ROW_BYTES = 1 << 16  # for 64 KiB of a row even a thread of many is worth its calls
_MOST_WORKERS = 64


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """How many threads fold, and how much each holds. None of it shows in the output.

    threads: threads that fold from the start.
    most_workers: threads on a slow disk, where most of them wait.
    rows: checkpoints that a thread reads before it adds them.
    row_bytes: bytes of one block of one checkpoint, in the type in which it is summed up.
    waits: whether each read is known to wait, as for a store: then all workers start, and read all rows at once.
    """

    threads: int
    most_workers: int
    rows: int
    row_bytes: int
    waits: bool = False

    def workspace(self, averages: int = 1, newest: int = 1) -> WorkspaceSize:
        """Return the size of one thread's workspace, for averages with so many different newest checkpoints."""
        return WorkspaceSize(rows=self.rows, row_bytes=self.row_bytes, averages=averages, bases=newest)

    def worker_bytes(self, averages: int = 1, newest: int = 1, kernel: Kernel | None = None) -> int:
        """Return the memory of one thread."""
        return (kernel or chosen_kernel().kernel).worker_bytes(self.workspace(averages, newest))


def least_bytes(averages: int = 1, newest: int = 1, kernel: Kernel | None = None) -> int:
    """Return the memory of one thread with the smallest buffers."""
    return BufferSizes(1, 1, _LEAST_ROWS, _LEAST_ROW_BYTES).worker_bytes(averages, newest, kernel)


def default_bytes(checkpoints: Iterable[Checkpoint]) -> int:
    """Return the memory of all threads where the user does not say."""
    return _STORE_BYTES if in_store(checkpoints) else DEFAULT_BYTES


def in_store(checkpoints: Iterable[Checkpoint]) -> bool:
    """Return whether any of the checkpoints has to be waited for."""
    return any(isinstance(checkpoint.path, StorePath) for checkpoint in checkpoints)


def divide_memory(
    nbytes: int,
    threads: int,
    averages: int = 1,
    newest: int = 1,
    kernel: Kernel | None = None,
    *,
    from_store: bool = False,
) -> BufferSizes:
    """Return sizes that keep `threads` at work within `nbytes`; fewer threads where these do not fit.

    Args:
        nbytes: the memory of all threads; at least `least_bytes`.
        threads: threads to keep at work. There may be more for a slow disk, where they fit.
        averages: averages that are made at once.
        newest: different newest checkpoints among these.
        kernel: the arithmetic; None for that of this process.
        from_store: whether a row comes with a request: then there are rather fewer threads than small ones.
    """
    kernel = kernel or chosen_kernel().kernel
    least = least_bytes(averages, newest, kernel)
    assert nbytes >= least, "checked by the caller, who knows what the user asked for"
    sizes = BufferSizes(min(threads, nbytes // least), 1, kernel.rows, kernel.row_bytes)
    if from_store:
        nbytes = max(least, nbytes * 3 // 4)  # the rest is for what was received and lies in no row yet
        sizes = BufferSizes(1, 1, _STORE_ROWS, _STORE_ROW_BYTES, waits=True)
        most = nbytes // sizes.worker_bytes(averages, newest, kernel)
        sizes = replace(sizes, threads=max(1, min(threads, most)))
    while sizes.threads * sizes.worker_bytes(averages, newest, kernel) > nbytes:
        if sizes.row_bytes <= _SHORT_ROW_BYTES and sizes.rows > _LEAST_ROWS:
            sizes = replace(sizes, rows=sizes.rows // 2)
        else:
            sizes = replace(sizes, row_bytes=sizes.row_bytes // 2)
    most = min(nbytes // sizes.worker_bytes(averages, newest, kernel), _MOST_WORKERS)
    return replace(sizes, most_workers=max(most, sizes.threads))
