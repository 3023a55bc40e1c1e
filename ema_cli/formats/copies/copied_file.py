"""A file that is a copy of another, with averages in the places of tensors: an `OutputFile`.

What stands around the tensors is copied byte by byte; nothing in it is run, or even understood. Only checksums are
computed anew, and our mark is put in, where the format has a place for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ema_cli.dataclass import dataclass
from ema_cli.formats.output_file import Stream, Table
from ema_cli.formats.torch_save.writer import checksum
from ema_cli.storage.source import InputFile

_COPY_BYTES = 1 << 20  # read and written at once
_CHECKSUM_BYTES = 4

Span = tuple[int, int]
"""The first byte of a range, and the one behind it."""


@dataclass(frozen=True, slots=True)
class Summed:
    """A range of the copy for which it has a CRC-32, and the bytes of the copy at which that stands."""

    begin: int
    size: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """What of a file is copied, and what stands in its place.

    Attributes:
        copied: the range of the original that is copied.
        head: stands before it, instead of what does in the original.
        tail: stands behind it.
        summed: the ranges whose checksums change.
    """

    copied: Span
    head: bytes = b""
    tail: bytes = b""
    summed: Sequence[Summed] = ()

    @property
    def shift(self) -> int:
        """Return how many bytes later in the copy than in the original a byte that is copied stands."""
        return len(self.head) - self.copied[0]


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """One file to be written over again.

    Attributes:
        name: its name.
        table: the tensors that begin in it.
        source: the original.
        replaced: the ranges of the original into whose places averages are put; in order, none over another.
        frame: what stands around these.
    """

    name: str
    table: Table
    source: InputFile
    replaced: Sequence[Span]
    frame: Frame

    @property
    def header(self) -> bytes:
        """Return nothing: all that stands around the tensors is written at the end."""
        return b""

    @property
    def header_size(self) -> int:
        """Return 0: places are counted from the beginning of the file."""
        return 0

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        begin, end = self.frame.copied
        return len(self.frame.head) + end - begin + len(self.frame.tail)

    def finish(self, stream: Stream) -> None:
        """Write all that stands around the averages, which are in place."""
        frame, shift = self.frame, self.frame.shift
        tail, tail_at = bytearray(frame.tail), frame.copied[1] + shift
        inside = sorted(place for summed in frame.summed for place in summed.places if place < tail_at)
        stream.write(0, frame.head)
        for begin, end in self._kept([place - shift for place in inside]):
            for at in range(begin, end, _COPY_BYTES):
                stream.write(at + shift, self.source.read(at, min(_COPY_BYTES, end - at)))
        for summed in frame.summed:
            value = checksum(stream, summed.begin, summed.size).to_bytes(_CHECKSUM_BYTES, "little")
            for place in summed.places:
                if place < tail_at:
                    stream.write(place, value)
                else:
                    tail[place - tail_at : place - tail_at + _CHECKSUM_BYTES] = value
        stream.write(tail_at, bytes(tail))

    def _kept(self, checksums: Sequence[int]) -> Iterator[Span]:
        """Yield the ranges of the original that are copied: all but tensors, and checksums at the given bytes."""
        at, end = self.frame.copied
        holes = sorted([*self.replaced, *((place, place + _CHECKSUM_BYTES) for place in checksums)])
        for low, high in holes:
            if at < low:
                yield at, low
            at = max(at, high)
        if at < end:
            yield at, end
