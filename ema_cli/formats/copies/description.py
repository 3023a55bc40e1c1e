"""Leave entries out of the pickle that describes a file of torch's, or take one out, without running it.

All other bytes stay as they are. A value is the bytes from where it begins to where the next one does. What stays may
refer to what the pickle remembered in an entry that goes: that is still made in its place, and dropped from the stack.
"""

from __future__ import annotations

import pickletools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

_STRINGS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING", "UNICODE"}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
# A value that is made of these alone cannot be changed later: it is the same wherever it is made.
_CONSTANT = {
    *_STRINGS, *_PUTS, *_GETS, "GLOBAL", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "MARK", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip
_MOST_PROTOCOL = 3  # newer ones number what they remember by its order, and have frames of a certain length
_POP = b"0"

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
    """The entries of a description that are wanted, and what it remembers.

    Attributes:
        entries: the entries, as they end.
        puts: by its number, where a value that is remembered begins, and the instruction behind it ends.
        gets: where values are referred to, and their numbers, in order.
        changing: where instructions stand that make no constant, in order.
    """

    entries: list[_Entry] = field(default_factory=list)
    puts: dict[int, tuple[int, int]] = field(default_factory=dict)
    gets: list[tuple[int, int]] = field(default_factory=list)
    changing: list[int] = field(default_factory=list)

    def used(self, begin: int, end: int) -> set[int]:
        """Return the numbers of the values to which something between two bytes refers."""
        first, last = bisect_left(self.gets, (begin, 0)), bisect_left(self.gets, (end, 0))
        return {number for _, number in self.gets[first:last]}

    def remembered(self, pickle: bytes, numbers: set[int], begin: int, end: int) -> list[bytes]:
        """Return what makes the values of these numbers, and drops them, as far as they are made between two bytes.

        Raises:
            CannotCut: for one that something could change later.
        """
        todo, parts = list(numbers), dict[int, bytes]()
        while todo:
            number = todo.pop()
            first, last = self.puts[number]
            if first in parts or not begin <= first < end:
                continue
            at = bisect_left(self.changing, first)
            if at < len(self.changing) and self.changing[at] < last:
                raise CannotCut("the two share an object")
            parts[first] = pickle[first:last] + _POP
            todo += self.used(first, last)
        return [parts[first] for first in sorted(parts)]


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
    borders = [0, *(byte for entry in cut for byte in (entry.begin, entry.end)), len(pickle)]
    kept = list(zip(borders[::2], borders[1::2], strict=True))
    numbers = set().union(*(reading.used(begin, end) for begin, end in kept))
    parts = [pickle[: kept[0][1]]]
    for entry, (begin, end) in zip(cut, kept[1:], strict=True):
        parts += reading.remembered(pickle, numbers, entry.begin, entry.end)
        parts.append(pickle[begin:end])
    return b"".join(parts), [entry.path for entry in cut]


def entry_bytes(pickle: bytes, path: Path) -> bytes | None:
    """Return instructions that make the value of one entry, as it stands there; None where there is no such entry.

    Raises:
        CannotCut: where it shares an object with what stands before it, or the pickle is of a newer protocol.
    """
    reading = _read(pickle, lambda other: other == path)
    if not reading.entries:
        return None
    entry = reading.entries[-1]
    before = reading.remembered(pickle, reading.used(entry.value, entry.end), 0, entry.value)
    return b"".join([*before, pickle[entry.value : entry.end]])


def _read(pickle: bytes, is_wanted: Callable[[Path], bool]) -> _Reading:
    """Go through a description once."""
    reading, stack, texts = _Reading(), list[_Value](), dict[int, str | None]()
    try:
        for (code, argument, at), end in _instructions(pickle):
            name = code.name
            if (name == "PROTO" and argument > _MOST_PROTOCOL) or name in ("FRAME", "MEMOIZE"):
                raise CannotCut("its description is a pickle of protocol 4 or newer")
            if name in _PUTS:
                if argument in reading.puts:
                    raise CannotCut("its description remembers two values under one number")
                reading.puts[argument], texts[argument] = (stack[-1].begin, end), stack[-1].text
            elif name in _GETS:
                reading.gets.append((at, argument))
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
    ends = [*(value.begin for value in items[2::2]), at if many else end]
    for key, value, behind in zip(items[::2], items[1::2], ends, strict=True):
        path = (*prefix, key.text)
        known = tuple(part for part in path if part is not None)
        if len(known) == len(path) and is_wanted(known):
            yield _Entry(known, key.begin, value.begin, behind)


def _last_mark(stack: Sequence[_Value], below: int) -> int:
    """Return the place of the last mark below a place of the stack, -1 where there is none."""
    return next((number for number in range(below - 1, -1, -1) if stack[number].is_mark), -1)
