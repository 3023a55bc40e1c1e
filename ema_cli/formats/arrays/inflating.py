"""Read what is compressed by deflate by range, in bounded memory: a reader goes on from where one was before.

Deflate can only be read from its beginning. What reads a tensor reads block after block, so the state behind each block
is kept, and the one before it, as blocks may come in another order from several threads.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.storage.source import ByteSource, Filled

if TYPE_CHECKING:
    from zlib import _Decompress

_MOST_STATES = 512  # of all files, each of some 45 KiB
_CHUNK = 1 << 16
_numbers = count()
_states: OrderedDict[tuple[int, int], _State] = OrderedDict()  # by the number of an entry and a place in its content
_lock = threading.Lock()


@dataclass(slots=True)
class _State:
    """A place in a deflated stream: how much of it was taken, and what inflates the rest."""

    taken: int
    inflate: _Decompress

    def copy(self) -> _State:
        return _State(self.taken, self.inflate.copy())


@dataclass(frozen=True, slots=True)
class DeflatedEntry(Filled):
    """A deflated part of a file, read as what it holds.

    Attributes:
        file: the file.
        start, stored: where the deflated bytes are in it.
        size: the size of the content.
    """

    file: ByteSource
    start: int
    stored: int
    size: int
    _number: int = field(default_factory=lambda: next(_numbers))

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self.file.path

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset` of the content.

        Raises:
            CheckpointError: where the content is damaged, or is shorter.
        """
        position, state = self._nearest(offset)
        while position < offset:
            position += len(self._next(state, min(offset - position, _CHUNK)))
        self._keep(offset, state.copy())
        done = 0
        while done < len(out):
            data = self._next(state, len(out) - done)
            out[done : done + len(data)] = data
            done += len(data)
        if offset + done == self.size:
            self._check_end(state)
        self._keep(offset + done, state)

    def _next(self, state: _State, most: int) -> bytes:
        """Return the next bytes of the content, one at least."""
        while True:
            left = state.inflate.unconsumed_tail or self._more(state)
            try:
                data = state.inflate.decompress(left, most)
            except zlib.error as error:
                raise CheckpointError("a compressed array in it is damaged", subject=self.path) from error
            if data:
                return data
            if state.inflate.eof or not left:
                raise CheckpointError("a compressed array in it ends too early", subject=self.path)

    def _check_end(self, state: _State) -> None:
        """Check that nothing follows the content, and that the stream says so."""
        try:
            while not state.inflate.eof and (left := state.inflate.unconsumed_tail or self._more(state)):
                if state.inflate.decompress(left, 1):
                    raise CheckpointError("a compressed array in it is longer than it says", subject=self.path)
        except zlib.error as error:
            raise CheckpointError("a compressed array in it is damaged", subject=self.path) from error
        if not state.inflate.eof:
            raise CheckpointError("a compressed array in it has no end", subject=self.path)

    def _more(self, state: _State) -> bytes:
        """Return the next bytes of the file that belong to the stream."""
        data = self.file.read(self.start + state.taken, min(_CHUNK, self.stored - state.taken))
        state.taken += len(data)
        return data

    def _nearest(self, offset: int) -> tuple[int, _State]:
        """Return the state that was kept nearest before a byte of the content, and where it is; it is kept no more."""
        with _lock:
            places = [place for number, place in _states if number == self._number and place <= offset]
            if places:
                return max(places), _states.pop((self._number, max(places)))
        return 0, _State(0, zlib.decompressobj(-zlib.MAX_WBITS))

    def _keep(self, place: int, state: _State) -> None:
        with _lock:
            _states[self._number, place] = state
            _states.move_to_end((self._number, place))
            while len(_states) > _MOST_STATES:
                _states.popitem(last=False)


@dataclass(frozen=True, slots=True)
class JoinedSources(Filled):
    """Several sources read as one, each behind the one before."""

    path: Path
    sources: tuple[ByteSource, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, sources: list[ByteSource]) -> JoinedSources:
        """Return the sources as one; a file that cannot be read names `path`."""
        starts, end = [], 0
        for source in sources:
            starts.append(end)
            end += source.size
        return cls(path, tuple(sources), tuple(starts))

    @property
    def size(self) -> int:
        """Return the number of bytes of all."""
        return self.starts[-1] + self.sources[-1].size if self.sources else 0

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`."""
        number, done = bisect_right(self.starts, offset) - 1, 0
        while done < len(out):
            source, begin = self.sources[number], offset + done - self.starts[number]
            size = min(len(out) - done, source.size - begin)
            source.read_into(begin, out[done : done + size])
            done, number = done + size, number + 1
