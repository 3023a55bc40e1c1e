"""Hand out the blocks of a fold to its threads: several that follow one another, which a store sends in one request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

from ema_cli.folding.block_task import BlockTask
from ema_cli.folding.buffers import BufferSizes


class Stretches:
    """The blocks of a fold that no thread has taken yet. Safe to use from several threads.

    Attributes:
        threads: threads that take blocks.
    """

    def __init__(self, tasks: Iterator[BlockTask], sizes: BufferSizes, checkpoints: int, nbytes: int) -> None:
        """Take the blocks.

        Args:
            tasks: the blocks, in the order in which they are handed out.
            sizes: how many a stretch may have, and the bytes of a block.
            checkpoints: of so many each block is read.
            nbytes: to be read of all blocks, about.
        """
        self.threads = 0
        self._tasks = tasks
        self._sizes = sizes
        self._block_bytes = (sizes.stored_bytes or sizes.row_bytes) * checkpoints  # of a full block
        self._left = nbytes
        self._last = 0  # blocks of the stretch that was taken last
        self._surplus = 0  # threads that are to end
        self._lock = threading.Lock()

    def take(self) -> list[BlockTask]:
        """Return the next blocks for one thread; none where there are no more, or it is to end."""
        with self._lock:
            if self._surplus:
                self._surplus -= 1
                return []
            self._last = self._next_length()
            tasks = list(islice(self._tasks, self._last))
            self._left -= len(tasks) * self._block_bytes
            return tasks

    def end(self, threads: int) -> None:
        """Have so many threads end, those that come next for more."""
        with self._lock:
            self._surplus = threads

    def _next_length(self) -> int:
        """Return how many blocks to take: many are asked for in one request, but all threads are to have work."""
        share = self._left // self._block_bytes // (2 * self.threads if self.threads > 1 else 1)
        return max(self._sizes.stretch, min(2 * self._last, self._sizes.most_stretch, share))
