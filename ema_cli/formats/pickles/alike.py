"""Objects that a pickle makes one after another, alike but for numbers and texts: a template reads many at once.

The `.metadata` of a large model describes hundreds of thousands of pieces, each by some seventy instructions, of which
only the numbers and names differ. So the instructions of one object, which the machine executed, are made a pattern;
where those that follow fit it byte for byte, what differs is taken from them, in columns, and they are not executed.

A run of such objects stands on the stack as one `Rows`. It may be taken from there once, into a list or a dict.
Whatever a program does otherwise with what is in it, a PickleError says so: such a file is read without templates.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.formats.pickles.machine import UNREAD, Machine
from ema_cli.formats.pickles.values import Name, PickleError
from ema_cli.storage.source import ByteSource

_MOST_ROWS = 1024  # that are taken at once: columns of bytes on their way take some 500 bytes a row
_MOST_TEMPLATES = 8  # of objects in a list, and of those in a dict
_MOST_TRIES = 256  # to make a template, and one more for each 8 rows that were taken
_MOST_KEPT = 1 << 14  # sizes that are kept, by their bytes
_SHORT = 3  # bytes that push a number below 65,536

_NEW, _BUILT = b")\x81\x94}\x94(", b"ub"  # how an object with attributes begins behind its class, and how it ends
_CALLED = b"\x94\x85\x94R\x94"  # how torch.Size is called with a tuple, which is remembered as all is
_INTEGER = rb"(?:K.|M..|J.{4}|\x8a(?:\x03.{3}|\x04.{4}|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8}))"
_NUMBER = rb"N|" + _INTEGER
_TUPLE = rb"(?:%b(?:\x85|%b(?:\x86|%b\x87))|\(%b{4,8}t)" % ((_INTEGER,) * 4)
_SIZE = _TUPLE + re.escape(_CALLED)
_TEXT = rb"\x8c.[ -~]*\x94"  # of plain characters, so that the pattern sees where it ends
_GET = rb"h.|j.{4}"
_EACH = re.compile(_INTEGER, re.DOTALL)
_FOLLOWS = re.compile(rb"(?:\x95.{8})?[euhj]", re.DOTALL)  # the end of the list or dict, or one more object

_uint = struct.Struct("<I").unpack_from


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


class AlikeMachine(Machine):
    """A machine that takes objects which are alike by templates."""

    def __init__(self, source: ByteSource, start: int, persistent: Callable[[Any], object]) -> None:
        super().__init__(source, start, persistent)
        self._templates: dict[int, list[_Template]] = {1: [], 2: []}  # by how many objects make an item
        self._tries = _MOST_TRIES
        self.readers: dict[bytes, dict[bytes, Any]] = {_TEXT: _Texts(), _NUMBER: _Numbers(), _SIZE: _Sizes()}
        self._standing: dict[int, Rows] = {}  # on the stack, by their ids
        self._group: list[Any] | None = None  # the part of the stack with the items of the last object
        self._behind = 0  # the byte behind that object

    def built(self, position: int) -> int:
        """Take what follows an object that was built, as far as it is alike; return the position behind it."""
        around = self.marks[-1][-1] if self.marks and self.marks[-1] else None
        size = 1 if type(around) is list else 2 if type(around) is dict else 0
        if size == 0 or len(self.stack) % size or self.memo_beyond:
            return position
        templates = self._templates[size]
        end = self._take(templates, position)
        begin = self._behind - self.base
        if end == position and self._tries > 0 and self._group is self.stack and begin >= 0:
            self._tries -= 1
            template = _compile(self, begin, position, size)
            if template is not None:
                templates[_MOST_TEMPLATES - 1 :] = []
                templates.insert(0, template)
                end = self._take(templates[:1], position)
        self._group, self._behind = self.stack, self.base + end
        return end

    def _take(self, templates: Sequence[_Template], position: int) -> int:
        """Take the items at `position` by the first template that fits; return the position behind them."""
        for template in templates:
            match = template.many.match(self.data, position) if template.holds(self) else None
            if match is None or not _FOLLOWS.match(self.data, match.end()):
                continue
            try:
                rows = template.rows(self, position, match.end())
            except NotAlike:
                continue
            self._tries += rows[0].count // 8
            self._standing |= {id(each): each for each in rows}
            self.stack += rows
            return match.end()
        return position

    def append(self, values: list[Any]) -> None:
        """Append values to the list on top of the stack."""
        if self._standing and any(type(value) is Rows for value in values):
            self._leave([value for value in values if type(value) is Rows], len(values))
        super().append(values)

    def set_items(self, pairs: list[Any]) -> None:
        """Put alternating keys and values into the mapping on top of the stack."""
        begin = 0
        if self._standing:
            for at in [at for at in range(0, len(pairs), 2) if type(pairs[at]) is Rows]:
                super().set_items(pairs[begin:at])
                self._leave(pairs[at : at + 2], len(pairs) // 2)
                if type(self.stack[-1]) is not dict:
                    raise PickleError("it sets items of what is not a mapping")
                self.stack[-1][pairs[at]] = pairs[at + 1]
                begin = at + 2
        super().set_items(pairs[begin:] if begin else pairs)

    def _leave(self, rows: list[Any], items: int) -> None:
        """Note that rows were taken from the stack, among so many items."""
        # One item alone is what SETITEM and APPEND take: of the objects the last, not all.
        if items < 2 or not all(self._standing.pop(id(each), None) is each for each in rows):
            raise PickleError("it uses one object in several places")

    def pop(self) -> None:
        """Drop what is on top of the stack."""
        self._check_none_stands()
        super().pop()

    def drop_mark(self) -> None:
        """Drop what was pushed since the last mark."""
        self._check_none_stands()
        super().drop_mark()

    def finish(self) -> None:
        """Check that all rows were taken from the stack, at the end of the program."""
        self._check_none_stands()

    def _check_none_stands(self) -> None:
        if self._standing:
            raise PickleError("it drops objects that it made")


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
        index = data[1] if data[0] == 0x68 else _uint(data, 1)[0]
        value = self._memo[index] if index < len(self._memo) else UNREAD
        if value is UNREAD:
            raise NotAlike
        self[data] = value
        return value


@dataclass(frozen=True, slots=True)
class _Object:
    """One class of an item: its attributes, and which slot of the pattern has each."""

    kind: str
    slots: Mapping[str, int]


@dataclass(frozen=True, eq=False, slots=True)
class _Template:
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
    objects: Sequence[_Object]
    uses: Mapping[int, Any]
    remembers: int
    texts: Sequence[tuple[int, int]]

    def holds(self, machine: Machine) -> bool:
        """Return whether what the instructions use is still what it was."""
        return all(machine.memo[number] is value for number, value in self.uses.items())

    def rows(self, machine: AlikeMachine, begin: int, end: int) -> list[Rows]:
        """Return the items between two positions, and remember what they do.

        Raises:
            NotAlike: where something else stands in them than the pattern sees.
        """
        found = self.one.findall(machine.data, begin, end)
        columns = zip(*found, strict=True) if len(self.kinds) > 1 else (found,)
        readers = machine.readers | {_GET: _Remembered(machine.memo)}
        values = [
            list(map(readers[kind].__getitem__, column)) for kind, column in zip(self.kinds, columns, strict=True)
        ]
        for kind, column in zip(self.kinds, values, strict=True):
            if kind is _SIZE:
                machine.copied += sum(map(len, column))
        block: list[Any] = [UNREAD] * (self.remembers * len(found))
        for number, slot in self.texts:
            block[number :: self.remembers] = values[slot]
        machine.memo += block
        return [
            Rows(each.kind, len(found), {name: values[slot] for name, slot in each.slots.items()})
            for each in self.objects
        ]


def _compile(machine: Machine, begin: int, end: int, size: int) -> _Template | None:
    """Return the template of the item whose instructions lie between two positions; None where it can have none."""
    reader = _Instructions(machine, begin, end)
    try:
        objects = [reader.object() for _ in range(size)]
    except (NotAlike, IndexError):
        return None
    if reader.position != end or not reader.kinds:
        return None
    return _Template(
        re.compile(rb"(?:%b){1,%d}+" % (b"".join(reader.pattern), _MOST_ROWS), re.DOTALL),
        re.compile(b"".join(reader.groups), re.DOTALL),
        reader.kinds,
        objects,
        reader.uses,
        reader.remembers,
        reader.texts,
    )


class _Instructions:
    """Reads the instructions of an item, and makes a pattern of them."""

    def __init__(self, machine: Machine, begin: int, end: int) -> None:
        self._machine = machine
        self._data = machine.data[begin:end]
        self._begin = begin
        self._at = 0
        self.pattern: list[bytes] = []
        self.groups: list[bytes] = []  # the same, each slot a group
        self.kinds: list[bytes] = []
        self.uses: dict[int, Any] = {}
        self.remembers = 0
        self.texts: list[tuple[int, int]] = []

    @property
    def position(self) -> int:
        """Return up to where instructions were read."""
        return self._begin + self._at

    def object(self) -> _Object:
        """Read an object: its class, its attributes one after another, and what ends it."""
        kind = self._used(Name)
        if kind.path not in self._machine.unknown:
            raise NotAlike  # which is not an object of attributes alone
        self._literally(_NEW)
        self.remembers += 2
        slots = {}
        while self._data[self._at] != _BUILT[0]:
            name = self._used(str)
            slots[name] = self._value()
        self._literally(_BUILT)
        if not slots:
            raise NotAlike
        return _Object(kind.path, slots)

    def _value(self) -> int:
        """Read the value of an attribute; return the number of its slot."""
        code = self._data[self._at]
        if code == 0x8C:
            self._slot(_TEXT)
            self.texts.append((self.remembers, len(self.kinds) - 1))
            self.remembers += 1
        elif code in b"hj" and isinstance(self._peek()[1], Name):
            if self._used(Name).path != "torch.Size":
                raise NotAlike
            self._slot(_SIZE)
            self.remembers += 3
        else:
            self._slot(_GET if code in b"hj" else _NUMBER)
        return len(self.kinds) - 1

    def _slot(self, kind: bytes) -> None:
        match = re.compile(kind, re.DOTALL).match(self._data, self._at)
        if match is None:
            raise NotAlike
        self._at = match.end()
        self.pattern.append(b"(?:%b)" % kind)
        self.groups.append(b"(%b)" % kind)
        self.kinds.append(kind)

    def _literally(self, instructions: bytes) -> None:
        if not self._data.startswith(instructions, self._at):
            raise NotAlike
        self._at += len(instructions)
        self.pattern.append(re.escape(instructions))
        self.groups.append(re.escape(instructions))

    def _peek(self) -> tuple[int, Any, int]:
        """Return the number of something remembered that comes next, it, and the length of the instruction."""
        code = self._data[self._at]
        if code not in b"hj":
            raise NotAlike
        number, length = (self._data[self._at + 1], 2) if code == 0x68 else (_uint(self._data, self._at + 1)[0], 5)
        return number, self._machine.memo[number], length

    def _used(self, kind: type[Any]) -> Any:
        """Read something of a type that is remembered."""
        number, value, length = self._peek()
        if type(value) is not kind:
            raise NotAlike
        self._literally(self._data[self._at : self._at + length])
        self.uses[number] = value
        return value
