"""Read blocks that follow one another with one request for each checkpoint, where that lies in a store.

What costs a store, and whoever pays for it, is the request. One for each block would be small, or blocks large; so a
request goes on over all blocks that a thread folds one after another. What was not taken yet waits in the connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.folding.block_task import BlockTask
from ema_cli.folding.direct import spans_in
from ema_cli.folding.kernel import BlockSums
from ema_cli.folding.reading import FoldReader
from ema_cli.storage.object_stream import ObjectStream
from ema_cli.storage.objects import ObjectFile

_LEAST_BYTES = 1 << 20  # of a request that goes on: the beginning of a small file may be known from its header


@dataclass(slots=True)
class _Part:
    """Bytes of a file that belong to one block, and the request that brings them; None where they come alone."""

    file: ObjectFile
    begin: int
    end: int
    stream: ObjectStream | None = None


class Ahead:
    """The requests of one thread for some blocks that it folds in this order."""

    def __init__(self, checkpoints: Sequence[Checkpoint], tasks: Sequence[BlockTask]) -> None:
        self._rows: dict[tuple[int, int], list[_Part]] = {}  # by block and checkpoint
        for number, checkpoint in enumerate(checkpoints):
            rows = [(task, _parts(checkpoint, number, task)) for task in tasks]
            for run in _runs(part for _, row in rows for part in row):
                file, begin, end = run[0].file, run[0].begin, run[-1].end
                stream = file.stream(begin, end) if len(run) > 1 and end - begin >= _LEAST_BYTES else None
                for part in run:
                    part.stream = stream
            self._rows.update({(task.number, number): row for task, row in rows if any(part.stream for part in row)})

    def read(self, task: BlockTask, number: int, row: memoryview) -> bool:
        """Fill the row with the block of a checkpoint; return False where no request that goes on brings it."""
        position = 0
        for part in self._rows.pop((task.number, number), ()):
            out = row[position : position + part.end - part.begin]
            position += len(out)
            if part.stream is not None:
                part.stream.read_into(out)
            else:
                part.file.read_into(part.begin, out)
        return position > 0


def _parts(checkpoint: Checkpoint, number: int, task: BlockTask) -> list[_Part]:
    """Return where the block lies in a checkpoint; nothing where it is not read of it, or not all in objects."""
    if not task.block.averaged and number not in task.weights.bases:
        return []
    spans = spans_in(ObjectFile, checkpoint.tensors, task.block.pieces, task.block.dtypes[number])
    return [_Part(file, begin, begin + size) for file, begin, size in spans or ()]


def _runs(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Yield the parts in lists, each of those that lie one after another in one file."""
    run: list[_Part] = []
    for part in parts:
        if run and (part.file is not run[-1].file or part.begin != run[-1].end):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


@dataclass(frozen=True, slots=True)
class AheadReader:
    """Reads some blocks for one thread, with requests that go on over several of them; a `Reader`."""

    reader: FoldReader
    ahead: Ahead

    def offset(self, task: BlockTask, number: int) -> int:
        """Return where in its file the block of a checkpoint begins; 0 where that is not known."""
        return self.reader.offset(task, number)

    def read(self, task: BlockTask, numbers: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the block of a checkpoint."""
        self.reader.read(task, numbers, rows, self.ahead.read)

    def read_and_add(self, task: BlockTask, numbers: Sequence[int], sums: BlockSums) -> bool:
        """Return False: what is in a store is not read by the kernel."""
        return False

    def read_again(self, task: BlockTask, number: int, row: memoryview) -> None:
        """Fill the row with a block that has been read before."""
        self.reader.read_again(task, number, row)
