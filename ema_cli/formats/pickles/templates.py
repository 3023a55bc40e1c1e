"""Templates of objects that a pickle makes one after another: what is equal in their instructions, and what differs.

What differs are slots: numbers, texts, sizes, and what is remembered. Of many objects at once, each slot is a column.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.formats.pickles.machine import UNREAD, Machine

_MOST_KEPT = 1 << 14  # sizes that are kept, by their bytes
_SHORT = 3  # bytes that push a number below 65,536

# The kinds of slots, as patterns of the instructions that push a value.
_CALLED = b"\x94\x85\x94R\x94"  # how torch.Size is called with a tuple, which is remembered as all is
_INTEGER = rb"(?:K.|M..|J.{4}|\x8a(?:\x03.{3}|\x04.{4}|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8}))"
NUMBER = rb"N|" + _INTEGER
_TUPLE = rb"(?:%b(?:\x85|%b(?:\x86|%b\x87))|\(%b{4,8}t)" % ((_INTEGER,) * 4)
SIZE = _TUPLE + re.escape(_CALLED)
TEXT = rb"\x8c.[ -~]*\x94"  # of plain characters, so that the pattern sees where it ends
GET = rb"h.|j.{4}"
_EACH = re.compile(_INTEGER, re.DOTALL)

uint = struct.Struct("<I").unpack_from


class NotAlike(Exception):
    """Objects that fit a pattern, and still cannot be taken by it."""


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Objects of one class, as columns.

    Attributes:
        kind: the class, as 'module.name'.
        count: how many objects.
        fields: the values of each attribute.
    """

    kind: str
    count: int
    fields: Mapping[str, Sequence[Any]]

    def states(self) -> Iterator[dict[str, Any]]:
        """Yield the attributes of each object."""
        for values in zip(*self.fields.values(), strict=True):
            yield dict(zip(self.fields, values, strict=True))


@dataclass(frozen=True, slots=True)
class Object:
    """One class of an item: its attributes, and which slot of the pattern has each."""

    kind: str
    slots: Mapping[str, int]


@dataclass(frozen=True, eq=False, slots=True)
class Template:
    """The instructions of an item: an object in a list, or two, key and value, in a dict.

    Attributes:
        many: matches the instructions of several items.
        one: those of one; its groups are the slots.
        kinds: what each slot is.
        objects: what the item is made of.
        uses: what the instructions use of the memo, by number, besides the slots.
        remembers: how much an item adds to the memo,
        texts: and which of that is the text of a slot: number in the memo and slot.
    """

    many: re.Pattern[bytes]
    one: re.Pattern[bytes]
    kinds: Sequence[bytes]
    objects: Sequence[Object]
    uses: Mapping[int, Any]
    remembers: int
    texts: Sequence[tuple[int, int]]

    def holds(self, machine: Machine) -> bool:
        """Return whether what the instructions use is still what it was."""
        return all(machine.memo[number] is value for number, value in self.uses.items())

    def rows(self, machine: Machine, readers: Mapping[bytes, Mapping[bytes, Any]], begin: int, end: int) -> list[Rows]:
        """Return the items between two positions, and remember what they do.

        Args:
            machine: has the instructions, and remembers.
            readers: reads the slots of each kind; see `readers_of_slots`.
            begin: the position of the first byte.
            end: that of the one behind.

        Raises:
            NotAlike: where something else stands in them than the pattern sees.
        """
        found = self.one.findall(machine.data, begin, end)
        columns = zip(*found, strict=True) if len(self.kinds) > 1 else (found,)
        readers = {**readers, GET: _Remembered(machine.memo)}
        values = [
            list(map(readers[kind].__getitem__, column)) for kind, column in zip(self.kinds, columns, strict=True)
        ]
        for kind, column in zip(self.kinds, values, strict=True):
            if kind is SIZE:
                machine.copied += sum(map(len, column))
        block: list[Any] = [UNREAD] * (self.remembers * len(found))
        for number, slot in self.texts:
            block[number :: self.remembers] = values[slot]
        machine.memo += block
        return [
            Rows(each.kind, len(found), {name: values[slot] for name, slot in each.slots.items()})
            for each in self.objects
        ]


def readers_of_slots() -> dict[bytes, dict[bytes, Any]]:
    """Return what reads the instructions of each kind of slot, but for what a machine remembers."""
    return {TEXT: _Texts(), NUMBER: _Numbers(), SIZE: _Sizes()}


class _Texts(dict[bytes, str]):
    """Texts by the instructions that push and remember them: between these, a length and so many characters."""

    def __missing__(self, data: bytes) -> str:
        if data[1] != len(data) - 3:
            raise NotAlike
        self[data] = text = data[2:-1].decode("ascii")
        return text


class _Numbers(dict[bytes, int | None]):
    """Numbers, or None, by the instruction that pushes them. Large ones mostly come once, and are not kept."""

    def __missing__(self, data: bytes) -> int | None:
        number = _number(data) if data != b"N" else None
        if len(data) <= _SHORT:
            self[data] = number
        return number


class _Sizes(dict[bytes, tuple[int, ...]]):
    """Tuples of numbers by the instructions that push them, and call torch.Size with them."""

    def __missing__(self, data: bytes) -> tuple[int, ...]:
        size = tuple(map(_number, _EACH.findall(data)))
        if len(self) < _MOST_KEPT:
            self[data] = size
        return size


def _number(data: bytes) -> int:
    """Return the number that an instruction pushes."""
    code = data[0]
    if code in b"KM":
        return int.from_bytes(data[1:], "little")
    return int.from_bytes(data[1 if code == 0x4A else 2 :], "little", signed=True)


class _Remembered(dict[bytes, Any]):
    """What a machine remembers, by the instructions that push it."""

    def __init__(self, memo: list[Any]) -> None:
        self._memo = memo

    def __missing__(self, data: bytes) -> Any:
        index = data[1] if data[0] == 0x68 else uint(data, 1)[0]
        value = self._memo[index] if index < len(self._memo) else UNREAD
        if value is UNREAD:
            raise NotAlike
        self[data] = value
        return value
