"""Make a template of an object's instructions, which a machine executed: see `templates.py`."""

from __future__ import annotations

import re
from typing import Any

from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.templates import GET, NUMBER, SIZE, TEXT, NotAlike, Object, Template, uint
from ema_cli.formats.pickles.values import Name

_MOST_ROWS = 1024  # that are taken at once: columns of bytes on their way take some 500 bytes a row

_NEW, _BUILT = b")\x81\x94}\x94(", b"ub"  # how an object with attributes begins behind its class, and how it ends


def compile_template(machine: Machine, begin: int, end: int, size: int) -> Template | None:
    """Return the template of the item whose instructions lie between two positions; None where it can have none."""
    reader = _Instructions(machine, begin, end)
    try:
        objects = [reader.object() for _ in range(size)]
    except (NotAlike, IndexError):
        return None
    if reader.position != end or not reader.kinds:
        return None
    return Template(
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

    def object(self) -> Object:
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
        return Object(kind.path, slots)

    def _value(self) -> int:
        """Read the value of an attribute; return the number of its slot."""
        code = self._data[self._at]
        if code == 0x8C:
            self._slot(TEXT)
            self.texts.append((self.remembers, len(self.kinds) - 1))
            self.remembers += 1
        elif code in b"hj" and isinstance(self._peek()[1], Name):
            if self._used(Name).path != "torch.Size":
                raise NotAlike
            self._slot(SIZE)
            self.remembers += 3
        else:
            self._slot(GET if code in b"hj" else NUMBER)
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
        number, length = (self._data[self._at + 1], 2) if code == 0x68 else (uint(self._data, self._at + 1)[0], 5)
        return number, self._machine.memo[number], length

    def _used(self, kind: type[Any]) -> Any:
        """Read something of a type that is remembered."""
        number, value, length = self._peek()
        if type(value) is not kind:
            raise NotAlike
        self._literally(self._data[self._at : self._at + length])
        self.uses[number] = value
        return value
