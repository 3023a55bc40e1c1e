"""Objects that a pickle makes one after another, alike but for numbers and texts: a template reads many at once.

The `.metadata` of a large model describes hundreds of thousands of pieces, each by some seventy instructions, of which
only the numbers and names differ. So the instructions of one object, which the machine executed, are made a pattern;
where those that follow fit it byte for byte, what differs is taken from them, in columns, and they are not executed.

A run of such objects stands on the stack as one `Rows`. It may be taken from there once, into a list or a dict.
Whatever a program does otherwise with what is in it, a PickleError says so: such a file is read without templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.template_compiler import compile_template
from ema_cli.formats.pickles.templates import NotAlike, Rows, Template, readers_of_slots
from ema_cli.formats.pickles.values import PickleError
from ema_cli.storage.source import ByteSource

_MOST_TEMPLATES = 8  # of objects in a list, and of those in a dict
_MOST_TRIES = 256  # to make a template, and one more for each 8 rows that were taken
_FOLLOWS = re.compile(rb"(?:\x95.{8})?[euhj]", re.DOTALL)  # the end of the list or dict, or one more object


class AlikeMachine(Machine):
    """A machine that takes objects which are alike by templates."""

    def __init__(self, source: ByteSource, start: int, persistent: Callable[[Any], object]) -> None:
        super().__init__(source, start, persistent)
        self._templates: dict[int, list[Template]] = {1: [], 2: []}  # by how many objects make an item
        self._tries = _MOST_TRIES
        self.readers = readers_of_slots()
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
            template = compile_template(self, begin, position, size)
            if template is not None:
                templates[_MOST_TEMPLATES - 1 :] = []
                templates.insert(0, template)
                end = self._take(templates[:1], position)
        self._group, self._behind = self.stack, self.base + end
        return end

    def _take(self, templates: Sequence[Template], position: int) -> int:
        """Take the items at `position` by the first template that fits; return the position behind them."""
        for template in templates:
            match = template.many.match(self.data, position) if template.holds(self) else None
            if match is None or not _FOLLOWS.match(self.data, match.end()):
                continue
            try:
                rows = template.rows(self, self.readers, position, match.end())
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
