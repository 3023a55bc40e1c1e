"""The stack machine that a pickle is a program for. It calls nothing: see `unpickle.py`.

It holds the stack, the marks and the memo, takes bytes from the file, and has one method for what each family of
instructions does to them. `instructions.py` maps each instruction to those; `run.py` executes a program.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

from ema_cli.formats.pickles.values import (
    KNOWN_CALLS,
    Inert,
    Name,
    PickleEnds,
    PickleError,
    Refused,
    TensorRef,
    checked_key,
)
from ema_cli.storage.source import ByteSource

MAX_PICKLE_BYTES = 256 << 20
# Elements copied by calls such as OrderedDict(pairs), which a small file can repeat on one large list.
_MAX_COPIED = 5_000_000
_MAX_NAME_CHARS = 1000  # of a class, which messages name
_MAX_LINE_BYTES = 1 << 16
_MAX_MEMO_INDEX = 1 << 32


class _Unread:
    """Stands in the memo for what was passed over, see `templates.py`."""


UNREAD = _Unread()


class Machine:
    """The state of one program, and what its instructions do.

    Args:
        source: the file with the pickle.
        start: the byte at which the pickle begins.
        persistent: says what an id of something outside the pickle stands for.
    """

    block_bytes = 1 << 20  # what is read from the file at once

    def __init__(self, source: ByteSource, start: int, persistent: Callable[[Any], object]) -> None:
        self.source = source
        self.resolve = persistent
        self.limit = min(source.size, start + MAX_PICKLE_BYTES)
        self.data = b""  # a block of the file that begins at byte `base`; `position` counts within it
        self.base = start
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []  # what was remembered under 0, 1, 2, ..., as is usual
        self.memo_beyond: dict[int, Any] = {}  # and what was not in that order
        self.copied = 0
        self.unknown: set[str] = set()  # what was called, and means nothing here
        self.names: set[str] | None = None  # takes the classes and functions that are named, where somebody asks

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        end = self.position + size
        if end > len(self.data):
            self.fetch(size)
            end = size
        if size < 0:
            raise PickleError("it takes a negative number of bytes")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def payload(self, size: int) -> object:
        """Return a value of `size` bytes, which come next."""
        return self.take(size)

    def frame(self, size: int) -> None:
        """Begin a frame of `size` bytes, which tells a reader of streams how much to fetch."""

    def fetch(self, size: int) -> None:
        """Read on, so that at least `size` bytes lie ahead."""
        self.base += self.position
        left = self.limit - self.base
        if size > left:
            if self.limit == self.source.size:
                raise PickleEnds("it ends too early")
            raise PickleError("it is too large")
        self.data = self.source.read(self.base, min(max(size, self.block_bytes), left))
        self.position = 0

    def number(self, layout: str) -> int:
        """Return the next number in struct's `layout`."""
        if layout == "<B":  # most of them are
            return self.take(1)[0]
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def line(self, encoding: str = "utf-8") -> str:
        """Return the text up to the next newline."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            self.fetch(min(_MAX_LINE_BYTES, self.limit - self.base - self.position))
            end = self.data.find(b"\n", 0, _MAX_LINE_BYTES)
            if end < 0 and len(self.data) < _MAX_LINE_BYTES and self.limit == self.source.size:
                raise PickleEnds("it ends too early")
            if end < 0:
                raise PickleError("it has a line of text without end")
        text = self.data[self.position : end].decode(encoding)
        self.position = end + 1
        return text

    def push(self, value: Any) -> None:
        """Put a value on the stack that is current once the value is computed."""
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Return what was pushed since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def pop(self) -> None:
        """Drop what is on top of the stack."""
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def drop_mark(self) -> None:
        """Drop what was pushed since the last mark."""
        self.pop_mark()

    def built(self, position: int) -> int:
        """Return the position behind an object that was given its state, and behind what is passed over after it."""
        return position

    def push_mark(self) -> None:
        """Begin a group of pushed values."""
        self.marks.append(self.stack)
        self.stack = []

    def count_copies(self, values: Any) -> None:
        """Bound the work that calls on memoized containers can ask for."""
        self.copied += len(values)
        if self.copied > _MAX_COPIED:
            raise PickleError("it repeats its containers into gigabytes")

    def set_items(self, pairs: list[Any]) -> None:
        """Put alternating keys and values into the mapping on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            if target.items is None:
                target.items = {}
            target = target.items
        if not isinstance(target, dict):
            raise PickleError("it sets items of what is not a mapping")
        for index in range(0, len(pairs), 2):
            key = pairs[index]
            if type(key) is not str and (key := checked_key(key)) is not pairs[index]:
                self.count_copies((key,))  # a placeholder of its own, however often one value is the key
            target[sys.intern(key) if type(key) is str else key] = pairs[index + 1]  # one copy, as in headers

    def append(self, values: list[Any]) -> None:
        """Append values to the list on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            if target.values is None:
                target.values = []
            target = target.values
        if not isinstance(target, list):
            raise PickleError("it appends to what is not a list")
        target.extend(values)

    def build(self) -> None:
        """Give the object on top its state. A state dict's `_metadata` is of no use to us."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict | TensorRef | Refused):
            raise PickleError(f"it gives a state to a {type(target).__name__}")

    def call(self, function: Any, args: Any) -> None:
        """Push what `function(*args)` stands for, calling nothing."""
        if not isinstance(args, tuple):
            raise PickleError("it calls with arguments that are no tuple")
        if not isinstance(function, Name):
            self.push(Inert("unnamed", args))
            return
        if function.path in self.unknown:
            self.push(Inert(function.path, args))
            return
        known = KNOWN_CALLS.get(function.path)
        if known is not None:
            for arg in args if not function.path.startswith("torch._") else ():  # which copy nothing
                if isinstance(arg, list | tuple | dict | bytes | str):
                    self.count_copies(arg)
            self.push(known(*args))
        elif function.path.startswith(("torch._utils._rebuild", "torch._tensor._rebuild", "torch._rebuild")):
            kind = function.path.rpartition(".")[2].removeprefix("_rebuild_").replace("_", " ")
            self.push(Refused(f"it is a tensor of an unsupported kind ({kind})"))
        else:
            self.unknown.add(function.path)
            self.push(Inert(function.path, args))

    def name(self, module: str, name: str) -> None:
        """Push a name of a class or function."""
        if len(module) + len(name) >= _MAX_NAME_CHARS:
            raise PickleError(f"it names something in {len(module) + len(name) + 1} characters")
        self.push(Name(f"{module}.{name}"))
        if self.names is not None:
            self.names.add(f"{module}.{name}")

    def persistent(self, identifier: Any) -> None:
        """Push what stands for something outside the pickle."""
        self.push(self.resolve(identifier))

    def get(self, index: int) -> None:
        """Push a remembered value."""
        value = self.memo[index] if 0 <= index < len(self.memo) else self.memo_beyond[index]
        if value is UNREAD:
            raise PickleError("it uses what was passed over")
        self.push(value)

    def put(self, index: int) -> None:
        """Remember the value on top."""
        if not 0 <= index < _MAX_MEMO_INDEX:  # larger numbers can be chosen so that all of them collide
            raise PickleError("it numbers what it remembers beyond all reason")
        value = self.stack[-1]
        if index < len(self.memo):
            self.memo[index] = value
        elif index == len(self.memo):
            self.memo.append(value)
            self.memo_beyond.pop(index, None)
        else:
            self.memo_beyond[index] = value
