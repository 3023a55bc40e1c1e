"""A file that is a copy of another, with averages in the places of tensors: an `OutputFile`.

What stands around the tensors is copied byte by byte; nothing in it is run, or even understood. Only checksums are
computed anew, and our mark is put in, where the format has a place for it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from ema_cli.dataclass import dataclass
from ema_cli.formats.output_file import Stream, Table, WithoutHeader
from ema_cli.formats.torch_save.writer import write_frame
from ema_cli.storage.around import Content, pieces
from ema_cli.storage.source import FileRegion, InputFile

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
class Copied:
    """A range of the original that is copied, and how many bytes later it stands in the copy."""

    begin: int
    end: int
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """What of a file is copied, and what stands in its place.

    Attributes:
        copied: the ranges of the original that are copied, in order.
        texts: what else the copy holds, each with its first byte in the copy, in order.
        summed: the ranges of the copy whose checksums are computed anew, in order.
    """

    copied: Sequence[Copied]
    texts: Sequence[tuple[int, bytes]] = ()
    summed: Sequence[Summed] = ()

    @property
    def size(self) -> int:
        """Return the size of the copy in bytes."""
        ends = [copied.end + copied.shift for copied in self.copied[-1:]]
        return max([*ends, *(at + len(text) for at, text in self.texts[-1:])], default=0)

    def shift(self, at: int) -> int:
        """Return how many bytes later in the copy than in the original a byte stands that is copied, or replaced."""
        return self.copied[bisect_right(self.copied, at, key=_begin) - 1].shift

    @property
    def places(self) -> list[int]:
        """Return the bytes of the copy at which checksums stand that are computed anew, in order."""
        return sorted(place for summed in self.summed for place in summed.places)


def _begin(copied: Copied) -> int:
    return copied.begin


@dataclass(frozen=True, slots=True)
class CopiedFile(WithoutHeader):
    """One file to be written over again.

    Attributes:
        name: its name.
        table: the tensors that begin in it.
        source: the original.
        replaced: the ranges of the original into whose places averages are put; in order, none over another.
        around: what stands around these.
    """

    name: str
    table: Table
    source: InputFile
    replaced: Sequence[Span]
    around: Frame

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.around.size

    @property
    def is_in_order(self) -> bool:
        """Return whether each checksum, and each text in which one stands, comes behind the bytes that it sums up."""
        ends = {place: summed.begin + summed.size for summed in self.around.summed for place in summed.places}
        places = self.around.places
        for at, text in self.around.texts:
            low, high = bisect_left(places, at), bisect_left(places, at + len(text))
            if any(ends[place] > at for place in places[low:high]):
                return False
        return all(end <= place for place, end in ends.items())

    def finish(self, stream: Stream) -> None:
        """Write all that stands around the averages, which are in place."""
        places = self.around.places
        for at, text in self.around.texts:
            if not _any_within(places, at, at + len(text)):
                stream.write(at, text)
        for begin, end, shift in self._kept(places):
            at = begin + shift
            for piece in pieces(FileRegion(self.source, begin, end - begin)):
                stream.write(at, piece)
                at += len(piece)
        write_frame(stream, self._checksums, self.summed())

    def summed(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the copy whose checksums are computed anew: the first byte, and how many."""
        return ((summed.begin, summed.size) for summed in self.around.summed)

    def frame(self, checksum_of: Callable[[int, int], int]) -> Iterator[tuple[int, Content]]:
        """Yield all that stands around the averages, in order, where that `is_in_order`; see `storage.around`."""
        places = self.around.places
        parts: list[tuple[int, Content]] = [
            (begin + shift, FileRegion(self.source, begin, end - begin)) for begin, end, shift in self._kept(places)
        ]
        parts += self.around.texts
        parts += [(at, bytes(_CHECKSUM_BYTES)) for at in places if not self._is_in_text(at)]
        summed, values = iter(self.around.summed), dict[int, bytes]()
        following = next(summed, None)
        for at, part in sorted(parts, key=_first):
            while following is not None and following.begin + following.size <= at:
                value = checksum_of(following.begin, following.size).to_bytes(_CHECKSUM_BYTES, "little")
                values.update(dict.fromkeys(following.places, value))
                following = next(summed, None)
            if isinstance(part, FileRegion):
                yield at, part
                continue
            text = bytearray(part)
            for place in places[bisect_left(places, at) : bisect_left(places, at + len(text))]:
                text[place - at : place - at + _CHECKSUM_BYTES] = values.pop(place)
            yield at, bytes(text)

    def _checksums(self, checksum_of: Callable[[int, int], int]) -> Iterator[tuple[int, bytes]]:
        """Yield the checksums, and the texts in which some stand, each with its first byte."""
        places = self.around.places
        texts = {at: bytearray(text) for at, text in self.around.texts if _any_within(places, at, at + len(text))}
        begins = list(texts)
        for summed in self.around.summed:
            value = checksum_of(summed.begin, summed.size).to_bytes(_CHECKSUM_BYTES, "little")
            for place in summed.places:
                number = bisect_right(begins, place) - 1
                at = begins[number] if number >= 0 else 0
                if number >= 0 and place < at + len(texts[at]):
                    texts[at][place - at : place - at + _CHECKSUM_BYTES] = value
                else:
                    yield place, value
        yield from ((at, bytes(text)) for at, text in texts.items())

    def _is_in_text(self, place: int) -> bool:
        number = bisect_right(self.around.texts, place, key=_first) - 1
        return number >= 0 and place < self.around.texts[number][0] + len(self.around.texts[number][1])

    def _kept(self, places: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield what is copied, all but tensors and checksums: the first byte, the one behind, the shift."""
        for copied in self.around.copied:
            at, shift = copied.begin, copied.shift
            first = bisect_left(self.replaced, (at, 0))
            last = bisect_left(self.replaced, (copied.end, 0))
            low, high = bisect_left(places, at + shift), bisect_left(places, copied.end + shift)
            sums = ((place - shift, place - shift + _CHECKSUM_BYTES) for place in places[low:high])
            for begin, end in sorted([*self.replaced[first:last], *sums]):
                if at < begin:
                    yield at, begin, shift
                at = max(at, end)
            if at < copied.end:
                yield at, copied.end, shift


def _first(part: tuple[int, Content]) -> int:
    return part[0]


def _any_within(places: Sequence[int], begin: int, end: int) -> bool:
    number = bisect_left(places, begin)
    return number < len(places) and places[number] < end
