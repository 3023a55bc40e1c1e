"""Leave entries out of the pickle that describes a file of torch's, or take one out, without running it.

All other bytes stay as they are. A value is the bytes from where it begins to where the next one does. What stays may
refer to a constant that the pickle remembered in an entry that goes: it is made anew where it is referred to first.
"""

from __future__ import annotations

import pickletools
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from itertools import pairwise
from typing import Any

from ema_cli.dataclass import dataclass

_STRINGS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING", "UNICODE"}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
# A value that is made of these alone cannot be changed later: it is the same wherever it is made.
_CONSTANT = {
    *_STRINGS, *_PUTS, *_GETS, "GLOBAL", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "MARK", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip
_PLAIN_CODES = {
    *_CONSTANT, "STOP", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "REDUCE",
}  # fmt: skip
_PLAIN_NAMES = ("collections.OrderedDict", "torch.Size")  # which are all that a plain value calls
_MOST_PROTOCOL = 3  # newer ones number what they remember by its order, and have frames of a certain length
_PUT, _GET = b"r", b"j"  # each with a number of four bytes
_MOST_NUMBER = 1 << 31

Path = tuple[str, ...]
"""The keys that lead to an entry of the dict that was saved, at most two."""


class CannotCut(Exception):
    """A description out of which an entry cannot be taken, and why."""


@dataclass(frozen=True, slots=True)
class _Value:
    """A value on the stack: the byte at which it begins; its text, if it is one; whether it is a mark."""

    begin: int
    text: str | None = None
    is_mark: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a dict: the keys that lead to it, and where its key and its value begin, and it ends."""

    path: Path
    begin: int
    value: int
    end: int


@dataclass(slots=True)
class _Reading:
    """The entries of a description that are wanted, and what it remembers: a few numbers for each instruction.

    Attributes:
        entries: the entries, as they end.
        places: where the instructions stand that remember a value under a number, or refer to one, in order.
        ends: where each of them ends.
        numbers: the number of each.
        begins: where the value begins that it remembers; -1 where it refers to one.
        puts: by its number, the index of the instruction that remembers a value.
        changing: where instructions stand that make no constant, in order.
    """

    entries: list[_Entry] = field(default_factory=list)
    places: array[int] = field(default_factory=partial(array, "q"))
    ends: array[int] = field(default_factory=partial(array, "q"))
    numbers: array[int] = field(default_factory=partial(array, "q"))
    begins: array[int] = field(default_factory=partial(array, "q"))
    puts: dict[int, int] = field(default_factory=dict)
    changing: array[int] = field(default_factory=partial(array, "q"))

    def note(self, place: int, end: int, number: int, begin: int) -> None:
        """Add an instruction."""
        if begin >= 0:
            self.puts[number] = len(self.places)
        self.places.append(place)
        self.ends.append(end)
        self.numbers.append(number)
        self.begins.append(begin)


@dataclass(slots=True)
class _Copy:
    """Copies parts of a description. A value that was remembered in no part is made where it is referred to first.

    Attributes:
        pickle, reading: the description.
        lost: the numbers of values that are remembered in no part.
        first: the number for the first value that a part remembers, the next ones for others; None: as they are.
    """

    pickle: bytes
    reading: _Reading
    lost: set[int]
    first: int | None = None
    _numbers: dict[int, int] = field(default_factory=dict)  # of what is remembered by now

    @property
    def remembered(self) -> int:
        """Return how many values are remembered by now."""
        return len(self._numbers)

    def copy(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a part.

        Raises:
            CannotCut: where it refers to a lost value that something could change later.
        """
        reading = self.reading
        for index in range(bisect_left(reading.places, begin), bisect_left(reading.places, end)):
            number, is_put = reading.numbers[index], reading.begins[index] >= 0
            if number not in self.lost and self.first is None:
                continue
            yield self.pickle[begin : reading.places[index]]
            begin = reading.ends[index]
            if number not in self._numbers and not is_put:
                put = reading.puts[number]
                yield from self._constant(reading.begins[put], reading.ends[put])
            elif number not in self._numbers:
                self._numbers[number] = number if self.first is None else self.first + len(self._numbers)
                yield _PUT + self._numbers[number].to_bytes(4, "little")
            elif not is_put:
                yield _GET + self._numbers[number].to_bytes(4, "little")
        yield self.pickle[begin:end]

    def _constant(self, begin: int, end: int) -> Iterator[bytes]:
        changing = self.reading.changing
        at = bisect_left(changing, begin)
        if at < len(changing) and changing[at] < end:
            raise CannotCut("the two share an object")
        return self.copy(begin, end)


def cut_description(pickle: bytes, is_cut: Callable[[Path], bool]) -> tuple[bytes, list[Path]]:
    """Return a description without the entries whose paths are to be cut, and these paths.

    Raises:
        CannotCut: where what stays shares an object with what goes, or the pickle is of a newer protocol.
    """
    reading = _read(pickle, is_cut)
    cut: list[_Entry] = []
    for entry in sorted(reading.entries, key=lambda entry: entry.begin):
        if not cut or entry.begin >= cut[-1].end:  # else it lies in another that is cut
            cut.append(entry)
    lost: set[int] = set()
    for entry in cut:
        first, last = (bisect_left(reading.places, byte) for byte in (entry.begin, entry.end))
        lost.update(reading.numbers[index] for index in range(first, last) if reading.begins[index] >= 0)
    borders = [0, *(byte for entry in cut for byte in (entry.begin, entry.end)), len(pickle)]
    copy = _Copy(pickle, reading, lost)
    with _no_endless_nesting():
        parts = [part for begin, end in zip(borders[::2], borders[1::2], strict=True) for part in copy.copy(begin, end)]
    return b"".join(parts), [entry.path for entry in cut]


def entry_bytes(pickle: bytes, paths: Collection[Path], first: int = 0) -> dict[Path, bytes]:
    """Return instructions that make the value of each of some entries, as it stands there, by the keys that are there.

    Each is whole by itself. They remember values under numbers from `first` on, which are all different.

    Raises:
        CannotCut: where one shares an object with what stands before it, or the pickle is of a newer protocol.
    """
    reading = _read(pickle, lambda path: path in paths)
    parts: dict[Path, bytes] = {}
    for entry in sorted(reading.entries, key=lambda entry: entry.begin):
        copy = _Copy(pickle, reading, set(), first)
        with _no_endless_nesting():
            parts[entry.path] = b"".join(copy.copy(entry.value, entry.end))
        first += copy.remembered
    return parts


@contextmanager
def _no_endless_nesting() -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise CannotCut("its values are nested too deep") from error


def foreign_names(instructions: bytes) -> list[str]:
    """Return what a value's instructions name that is no plain value, container or number; of a tensor its storage."""
    names = []
    for code, argument, _ in pickletools.genops(instructions + b"."):
        if code.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
            names += [name] if name not in _PLAIN_NAMES else []
        elif code.name not in _PLAIN_CODES:
            names.append("a tensor" if code.name.endswith("PERSID") else f"what pickle's {code.name} makes")
    return list(dict.fromkeys(names))


def _read(pickle: bytes, is_wanted: Callable[[Path], bool]) -> _Reading:
    """Go through a description once."""
    reading, stack, texts = _Reading(), list[_Value](), dict[int, str | None]()
    try:
        for (code, argument, at), end in _instructions(pickle):
            name = code.name
            if (name == "PROTO" and argument > _MOST_PROTOCOL) or name in ("FRAME", "MEMOIZE"):
                raise CannotCut("its description is a pickle of protocol 4 or newer")
            if name in _PUTS:
                if argument in reading.puts or argument >= _MOST_NUMBER:
                    raise CannotCut("its description remembers two values under one number")
                reading.note(at, end, argument, stack[-1].begin)
                texts[argument] = stack[-1].text
            elif name in _GETS:
                reading.note(at, end, argument, -1)
                stack.append(_Value(at, texts[argument]))
            elif name in _STRINGS:
                stack.append(_Value(at, argument))
            elif name == "MARK":
                stack.append(_Value(at, is_mark=True))
            else:
                if name in ("SETITEMS", "SETITEM"):
                    reading.entries += _entries(stack, at, end, is_wanted, many=name == "SETITEMS")
                if name not in _CONSTANT:
                    reading.changing.append(at)
                begin = _pop(stack, code, at)
                stack += [_Value(begin)] * len(code.stack_after)
    except (ValueError, IndexError, KeyError) as error:
        raise CannotCut("its description is damaged") from error
    return reading


def _instructions(pickle: bytes) -> Iterator[tuple[tuple[pickletools.OpcodeInfo, Any, int], int]]:
    """Yield each instruction, with its argument and its place, and the byte behind it; not the last, which ends all."""
    for (code, argument, at), (_, _, end) in pairwise(pickletools.genops(pickle)):
        yield (code, argument, at or 0), end or 0


def _pop(stack: list[_Value], code: pickletools.OpcodeInfo, at: int) -> int:
    """Take what an instruction takes from the stack; return where that begins, `at` where it is nothing."""
    before = list(code.stack_before)
    if pickletools.markobject in before:
        while not (value := stack.pop()).is_mark:
            pass
        at, before = value.begin, before[: before.index(pickletools.markobject)]
    for _ in before:
        at = stack.pop().begin
    return at


def _entries(
    stack: Sequence[_Value], at: int, end: int, is_wanted: Callable[[Path], bool], *, many: bool
) -> Iterator[_Entry]:
    """Yield the wanted entries that an instruction from byte `at` to `end` puts into the dict below them."""
    first = _last_mark(stack, len(stack)) + 1 if many else len(stack) - 2
    target = first - 2 if many else first - 1
    above = _last_mark(stack, target)
    if target == 0:
        prefix: tuple[str | None, ...] = ()
    elif above == 1 and (target - above) % 2 == 0:  # the value of an entry in the dict at the bottom
        prefix = (stack[target - 1].text,)
    else:
        return
    items = stack[first:]
    if not items:  # as a pickler writes it behind a thousand entries, or two thousand
        return
    ends = [*(value.begin for value in items[2::2]), at if many else end]
    for key, value, behind in zip(items[::2], items[1::2], ends, strict=True):
        path = (*prefix, key.text)
        known = tuple(part for part in path if part is not None)
        if len(known) == len(path) and is_wanted(known):
            yield _Entry(known, key.begin, value.begin, behind)


def _last_mark(stack: Sequence[_Value], below: int) -> int:
    """Return the place of the last mark below a place of the stack, -1 where there is none."""
    return next((number for number in range(below - 1, -1, -1) if stack[number].is_mark), -1)
