"""The memory of a fold: how much there is, and how it is divided among threads."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from enum import Enum

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.folding.kernel import Kernel, WorkspaceSize
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.storage.names import HUB, StorePath
from ema_cli.storage.store.clients import is_plain

DEFAULT_BYTES = 80 << 20
_STORE_BYTES = 128 << 20  # where checkpoints lie in a store
_STORED_BYTES = 1 << 19  # of a block that comes ahead: what waits of all checkpoints is to stay near the processor
_ALONE_BYTES = 1 << 22  # of a block that a request brings alone
_STORE_ROWS = 16
_COPIES = 2  # of a block from the Hub: what its client has received, and what it puts together of that
# Of a request, the first and then the longest: with 1 MiB a store takes twice the processor time for as many bytes.
_REQUEST_BYTES = 1 << 24
_LONG_REQUEST_BYTES = 1 << 27
_MOST_STRETCH = 512  # blocks, each of which takes some memory
_HELD_BYTES = 1 << 19  # of a checkpoint that comes ahead in pieces, what came with the last one of a block
_MOST_CONNECTIONS = 48
_LEAST_WORKERS = 2  # where nothing comes ahead: one waits for its requests while the other adds
_LEAST_ROWS = 2
_SHORT_ROW_BYTES = 1 << 17  # rather fewer rows than shorter ones
_LEAST_ROW_BYTES = 1 << 16  # for 64 KiB of a row even a thread of many is worth its calls
_MOST_WORKERS = 64
_WINDOW_BYTES = 1 << 30  # many layers: the order of tensors differs between files within these, as a rule


class Arrival(Enum):
    """How the bytes of a long request to a store arrive: all at once, bit by bit, or over a connection of ours."""

    WHOLE = "whole"
    PIECES = "pieces"
    STRAIGHT = "straight"


# To begin with. Ours cost little: two threads receive from sixteen each, so that one works while the other waits.
_CONNECTIONS = {Arrival.WHOLE: 16, Arrival.PIECES: 16, Arrival.STRAIGHT: 32}
# So many checkpoints may have a request each that goes on over many blocks: one of obstore's takes 2.5 MB of memory,
# what comes over one of ours waits in the system.
_MOST_AHEAD = {Arrival.WHOLE: 0, Arrival.PIECES: _MOST_CONNECTIONS, Arrival.STRAIGHT: 256}


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """How many threads fold, and how much each holds. None of it shows in the output.

    Attributes:
        threads: threads that fold from the start.
        most_workers: threads on a slow disk, where most of them wait.
        rows: checkpoints that a thread reads before it adds them.
        row_bytes: bytes of one block of one checkpoint, in the type in which it is summed up.
        stored_bytes: the most bytes of such a block as it is stored; 0 where that may be `row_bytes`.
        stretch: blocks that follow one another and that a thread folds one after the other, at least.
        most_stretch: so many at most: a stretch has twice as many blocks as the one before, as long as many are left.
        ahead: checkpoints whose blocks come before they are folded; 0 where each is read when it is.
        held: bytes of each of these that may come with a block, and are of the next one.
        window: bytes of a checkpoint within which tensors are folded in the order of its files; 0 where they are in
            that of the output.
        waits: whether each read is known to wait, as for a store: then a thread reads all rows at once.
        copies: of what is read, so many are in memory for a moment besides the row itself.
    """

    threads: int
    most_workers: int
    rows: int
    row_bytes: int
    stored_bytes: int = 0
    stretch: int = 1
    most_stretch: int = 1
    ahead: int = 0
    held: int = 0
    waits: bool = False
    copies: int = 0
    window: int = 0

    @property
    def most_readers(self) -> int:
        """Return how many threads wait for a disk or store: for each row, or each request and what comes alone."""
        return self.most_workers * max(self.rows, min(self.ahead, _MOST_CONNECTIONS) + 1 if self.ahead else 0)

    @property
    def most_connections(self) -> int:
        """Return how many connections there may be to a store: the next request is made before one has ended."""
        return 2 * self.most_workers * self.ahead

    def workspace(self, averages: int = 1, newest: int = 1) -> WorkspaceSize:
        """Return the size of one thread's workspace, for averages with so many different newest checkpoints."""
        return WorkspaceSize(self.rows, self.row_bytes, averages, newest, self.stored_bytes)

    def worker_bytes(self, averages: int = 1, newest: int = 1, kernel: Kernel | None = None) -> int:
        """Return the memory of one thread, and of what comes ahead for it."""
        received = self.ahead * (2 * self.stored_bytes + self.held)  # one block is folded, one comes
        received += self.copies * self.rows * self.stored_bytes
        return (kernel or chosen_kernel().kernel).worker_bytes(self.workspace(averages, newest)) + received


def least_bytes(averages: int = 1, newest: int = 1, kernel: Kernel | None = None) -> int:
    """Return the memory of one thread with the smallest buffers."""
    return BufferSizes(1, 1, _LEAST_ROWS, _LEAST_ROW_BYTES).worker_bytes(averages, newest, kernel)


def default_bytes(checkpoints: Iterable[Checkpoint]) -> int:
    """Return the memory of all threads where the user does not say."""
    return _STORE_BYTES if in_store(checkpoints) else DEFAULT_BYTES


def in_store(checkpoints: Iterable[Checkpoint]) -> bool:
    """Return whether any of the checkpoints has to be waited for."""
    return any(isinstance(checkpoint.path, StorePath) for checkpoint in checkpoints)


def arrival(checkpoints: Collection[Checkpoint]) -> Arrival:
    """Return how long requests bring the bytes of these checkpoints, which lie in stores."""
    paths = [each.path for each in checkpoints]
    if any(isinstance(path, StorePath) and path.scheme == HUB for path in paths):
        return Arrival.WHOLE
    if not all(isinstance(path, StorePath) and is_plain(path) for path in paths):
        return Arrival.PIECES
    from ema_cli.storage.store.object_file import ObjectFile  # which only those need who read from a store
    from ema_cli.storage.store.straight import answers_us

    files = (file for each in checkpoints for file in each.files if isinstance(file, ObjectFile) and file.size)
    first = next(files, None)
    return Arrival.STRAIGHT if first is None or answers_us(first.path, first.stored) else Arrival.PIECES


def divide_memory(
    nbytes: int,
    threads: int,
    averages: int = 1,
    newest: int = 1,
    kernel: Kernel | None = None,
    *,
    from_store: int = 0,
    arrives: Arrival = Arrival.PIECES,
) -> BufferSizes:
    """Return sizes that keep `threads` at work within `nbytes`; fewer threads where these do not fit.

    Args:
        nbytes: the memory of all threads; at least `least_bytes`.
        threads: threads to keep at work. There may be more for a slow disk, where they fit.
        averages: averages that are made at once.
        newest: different newest checkpoints among these.
        kernel: the arithmetic; None for that of this process.
        from_store: how many checkpoints there are, where they lie in a store.
        arrives: how what a long request to it brings arrives.
    """
    kernel = kernel or chosen_kernel().kernel
    least = least_bytes(averages, newest, kernel)
    assert nbytes >= least, "checked by the caller, who knows what the user asked for"
    sizes = BufferSizes(min(threads, nbytes // least), _MOST_WORKERS, kernel.rows, kernel.row_bytes)
    if from_store:
        sizes = _store_sizes(from_store, arrives)
        smallest = replace(sizes, rows=_LEAST_ROWS, row_bytes=_LEAST_ROW_BYTES, stored_bytes=_LEAST_ROW_BYTES // 2)
        if smallest.worker_bytes(averages, newest, kernel) > nbytes:
            sizes = replace(sizes, ahead=0)
        if not sizes.ahead and not sizes.copies:
            nbytes = max(least, nbytes * 3 // 4)  # the rest is for what was received and lies in no row yet
        most = nbytes // sizes.worker_bytes(averages, newest, kernel)
        sizes = replace(sizes, threads=max(1 if sizes.ahead else _LEAST_WORKERS, min(sizes.threads, most)))
    while sizes.threads * sizes.worker_bytes(averages, newest, kernel) > nbytes:
        if sizes.row_bytes <= _LEAST_ROW_BYTES and sizes.rows <= _LEAST_ROWS:
            sizes = replace(sizes, threads=sizes.threads - 1)
        elif sizes.row_bytes <= _SHORT_ROW_BYTES and sizes.rows > _LEAST_ROWS:
            sizes = replace(sizes, rows=sizes.rows // 2)
        else:
            sizes = replace(sizes, row_bytes=sizes.row_bytes // 2, stored_bytes=sizes.stored_bytes // 2)
    most = min(nbytes // sizes.worker_bytes(averages, newest, kernel), sizes.most_workers)
    if sizes.ahead:
        stretch, most_stretch = _REQUEST_BYTES // sizes.stored_bytes, _LONG_REQUEST_BYTES // sizes.stored_bytes
        sizes = replace(sizes, stretch=stretch, most_stretch=max(stretch, min(most_stretch, _MOST_STRETCH)))
    return replace(sizes, most_workers=max(most, sizes.threads))


def _store_sizes(checkpoints: int, arrives: Arrival) -> BufferSizes:
    """Return what a fold from a store begins with: a request for each checkpoint in each thread, over many blocks.

    Of very many checkpoints a thread has no request for each, and the Hub's client gives all that a request brings at
    once: then one brings a block, and several wait side by side.
    """
    is_ahead = checkpoints <= _MOST_AHEAD[arrives]
    rows = max(_LEAST_ROWS, min(_STORE_ROWS if is_ahead else _STORE_ROWS // 2, checkpoints))
    at_once = checkpoints if is_ahead else rows
    stored = _STORED_BYTES if is_ahead else _ALONE_BYTES
    return BufferSizes(
        threads=-(-_CONNECTIONS[arrives] // at_once),
        most_workers=_MOST_CONNECTIONS // at_once,
        rows=rows,
        row_bytes=2 * stored,
        stored_bytes=stored,
        ahead=checkpoints if is_ahead else 0,
        held=_HELD_BYTES if arrives is Arrival.PIECES else 0,
        waits=True,
        window=_WINDOW_BYTES,
        copies=_COPIES if arrives is Arrival.WHOLE else 0,
    )
