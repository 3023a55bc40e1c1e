"""The sums of what is read, made by several who read a part each: every block by one of them.

A block of the bytes that are read of a checkpoint may begin in one task and end in another. It belongs to the task that
reads its first byte; that one reads the rest of it once more.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.engines.records import BlockSum
from ema_cli.folding.blocks import Group, make_groups
from ema_cli.folding.sample import Selection
from ema_cli.storage.checksums import BLOCK_BYTES, Checksums


@dataclass(slots=True)
class _Table:
    """Where in all bytes of one kind, averaged or copied, that are read of a checkpoint each tensor begins."""

    names: list[str] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    dtypes: list[DType] = field(default_factory=list)
    total: int = 0

    def add(self, name: str, dtype: DType, count: int) -> None:
        self.names.append(name)
        self.begins.append(self.total)
        self.dtypes.append(dtype)
        self.total += dtype.nbytes(count)

    def read(self, checkpoint: Checkpoint, begin: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes from `begin` to `end`."""
        number = bisect_right(self.begins, begin) - 1
        while begin < end:
            stop = self.begins[number + 1] if number + 1 < len(self.begins) else self.total
            first, last = begin - self.begins[number], min(end, stop) - self.begins[number]
            size = self.dtypes[number].itemsize
            low, high = first // size * size, -(-last // size) * size
            data = memoryview(bytearray(high - low))
            if len(data):
                checkpoint.tensors.read_into(self.names[number], low, data)
                yield data[first - low : last - low]
            begin, number = max(begin, min(end, stop)), number + 1


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of what this task reads: where it begins in all that is read; `None` where another task has it, too."""

    begin: int | None
    size: int


class TaskChecksums:
    """The sums of the blocks that belong to one task. `checksums` takes what is read."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        targets: Mapping[str, DType],
        copied: frozenset[str],
        own: Mapping[str, DType],
        selection: Selection | None,
    ) -> None:
        """Find the places of what the task reads.

        Args:
            checkpoints: all that are read, the oldest first.
            targets: the tensors of the whole averaging; see `fold`.
            copied: see there.
            own: the tensors of the task.
            selection: the elements of the task.
        """
        groups = list(make_groups(checkpoints, targets, copied))
        own_groups = list(make_groups(checkpoints, own, copied, selection))
        streams: dict[tuple[int, bool], _PartialStream] = {}
        tables: dict[tuple[int, bool], tuple[_Table, list[_Stretch]]] = {}
        for number, checkpoint in enumerate(checkpoints):
            for is_copied in (False, True):
                key = (id(checkpoint.tensors.specs), is_copied)
                if key not in tables:
                    table = _table(checkpoint, groups, is_copied)
                    tables[key] = table, _stretches(checkpoint, table, own_groups, is_copied)
                streams[number, is_copied] = _PartialStream(checkpoint, *tables[key])
        self._streams = streams
        self.checksums = Checksums(len(checkpoints), lambda number, is_copied: streams[number, is_copied])

    def sums(self) -> list[BlockSum]:
        """Return the sums, once all is read."""
        return [
            (number, is_copied, block, sha256)
            for (number, is_copied), stream in self._streams.items()
            for block, sha256 in stream.finish().items()
        ]


def _dtype(checkpoint: Checkpoint, group: Group) -> DType:
    return checkpoint.tensors.specs[group.names[0]].dtype if group.averaged else group.spec.dtype


def _table(checkpoint: Checkpoint, groups: Iterable[Group], is_copied: bool) -> _Table:
    table = _Table()
    for group in groups:
        if group.averaged is not is_copied:
            table.add(group.names[0], _dtype(checkpoint, group), group.count)
    return table


def _stretches(checkpoint: Checkpoint, table: _Table, own: Iterable[Group], is_copied: bool) -> list[_Stretch]:
    """Return what a task reads, in order; what is tied to a tensor of another task is that one's."""
    begins = dict(zip(table.names, table.begins, strict=True))
    stretches = []
    for group in own:
        if group.averaged is not is_copied:
            dtype, begin = _dtype(checkpoint, group), begins.get(group.names[0])
            stretches += [
                _Stretch(None if begin is None else begin + dtype.nbytes(start), dtype.nbytes(count))
                for start, count in group.ranges
            ]
    return stretches


class _PartialStream:
    """Sums up the blocks of a stream of which only parts are read, those that begin in these."""

    def __init__(self, checkpoint: Checkpoint, table: _Table, stretches: Sequence[_Stretch]) -> None:
        self._checkpoint = checkpoint
        self._table = table
        self._stretches = iter(stretches)
        self._begin: int | None = None  # of the rest of the stretch
        self._room = 0
        self._block = -1
        self._at = 0  # all of the block before this byte is summed up
        self._sha256 = hashlib.sha256()
        self._done: dict[int, str] = {}

    def update(self, data: memoryview) -> None:
        """Take the next bytes that are read."""
        while len(data):
            while not self._room:
                stretch = next(self._stretches)
                self._begin, self._room = stretch.begin, stretch.size
            part = data[: self._room]
            if self._begin is not None:
                self._take(self._begin, part)
                self._begin += len(part)
            self._room -= len(part)
            data = data[len(part) :]

    def checksums(self) -> list[str]:
        """Return the sums of the blocks that are done."""
        return list(self._done.values())

    def finish(self) -> dict[int, str]:
        """Return the sums of all blocks that begin in what was read."""
        self._close()
        return self._done

    def _take(self, begin: int, data: memoryview) -> None:
        while len(data):
            block = begin // BLOCK_BYTES
            part = data[: (block + 1) * BLOCK_BYTES - begin]
            if begin == block * BLOCK_BYTES:
                self._close()
                self._block, self._at, self._sha256 = block, begin, hashlib.sha256()
            if block == self._block:
                self._fill(begin)
                self._sha256.update(part)
                self._at += len(part)
            begin, data = begin + len(part), data[len(part) :]

    def _fill(self, end: int) -> None:
        """Read what belongs to other tasks, up to byte `end`."""
        for data in self._table.read(self._checkpoint, self._at, end):
            self._sha256.update(data)
        self._at = max(self._at, end)

    def _close(self) -> None:
        if self._block >= 0:
            self._fill(min((self._block + 1) * BLOCK_BYTES, self._table.total))
            self._done[self._block] = self._sha256.hexdigest()
            self._block = -1


@dataclass(frozen=True, slots=True)
class _Known:
    """The sums of a stream that others made."""

    blocks: Mapping[int, str]

    def update(self, data: memoryview) -> None:
        """Do nothing: it is summed up."""

    def checksums(self) -> list[str]:
        return [self.blocks[number] for number in range(len(self.blocks))]


def together(count: int, sums: Iterable[BlockSum]) -> Checksums:
    """Return the checksums of `count` checkpoints, of what several tasks summed up."""
    streams: dict[tuple[int, bool], dict[int, str]] = {}
    for checkpoint, is_copied, block, sha256 in sums:
        streams.setdefault((checkpoint, is_copied), {})[block] = sha256
    make: Callable[[int, bool], _Known] = lambda checkpoint, is_copied: _Known(streams.get((checkpoint, is_copied), {}))  # noqa: E731
    return Checksums(count, make)
