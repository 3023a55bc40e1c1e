"""Read a pickle without running anything in it.

A pickle is a program for a stack machine; its dangerous instructions call what the file names. This machine
calls nothing. It knows plain containers and torch's recipes for a tensor, from which it keeps a *description*
(dtype, shape, strides, where the bytes lie); every other class or function becomes an `Inert` placeholder that
keeps its arguments, items and state. So it reads more than an allow-list does, and nothing of it runs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ema_cli.formats.pickles.instructions import ACTIONS, STOP
from ema_cli.formats.pickles.values import (
    KNOWN_CALLS,
    Inert,
    Name,
    PickleEnds,
    PickleError,
    Refused,
    Storage,
    TensorRef,
    checked_key,
    storage_dtype,
)
from ema_cli.storage.source import ByteSource

# Elements copied by calls such as OrderedDict(pairs), which a small file can repeat on one large list.
_MAX_COPIED = 5_000_000
_MAX_INSTRUCTIONS = 20_000_000  # a tensor takes some forty
_MAX_NAME_CHARS = 1000  # of a class, which messages name
_MAX_REASON_CHARS = 200


MAX_PICKLE_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20  # what is read from the file at once
_MAX_LINE_BYTES = 1 << 16
_MAX_MEMO_INDEX = 1 << 32
_OPERAND_BYTES = 5  # the longest instruction of a fixed length that `run` writes out, with its operand

_uint, _int = struct.Struct("<I").unpack_from, struct.Struct("<i").unpack_from


def describe_storage(identifier: Any) -> Storage | Name:
    """Return the storage that a persistent id of torch's describes: ('storage', class, key, location, count).

    The legacy format has two more: a view of a storage, as very old versions wrote, which is refused; and the
    class of a module with its source text, of which we keep the name.
    """
    match identifier:
        case ("storage", Name(path), str(key), _, int(count)) | ("storage", Name(path), str(key), _, int(count), None):
            # No file is larger; and the hashes of storages with larger counts could be chosen to be equal.
            if 0 <= count < 1 << 60:
                return Storage(storage_dtype(path), key, count)
        case ("storage", Name(), str(), _, int(), _):
            raise PickleError("a tensor's storage is a view of another, as torch before 0.4 wrote it")
        case ("module", Name() as name, *_):
            return name
    raise PickleError("it refers to something outside that is no tensor storage")


def unpickle(
    source: ByteSource, start: int = 0, persistent: Callable[[Any], object] = describe_storage
) -> tuple[Any, int]:
    """Return what the pickle at byte `start` of `source` describes, and the byte at which it ends.

    The value is made of plain containers and of `pickle_values`: sets come as lists, OrderedDict and defaultdict as
    dicts. `persistent` says what an id of something outside the pickle stands for.

    Raises:
        PickleError: for anything that is not a pickle of protocol 0 to 5, as torch writes it.
        CheckpointError: where the file cannot be read.
    """
    machine = Machine(source, start, persistent)
    try:
        return machine.run(), machine.base + machine.position
    except (
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        struct.error,
        OverflowError,
        RecursionError,
    ) as error:
        raise PickleError(f"it is damaged: {str(error)[:_MAX_REASON_CHARS]}") from error


class Machine:
    """The stack machine. One method for each family of instructions, found by the byte that asks for it."""

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

    def run(self) -> Any:
        """Execute until STOP and return what is on top.

        Those instructions of which nearly all of a description of tensors is made are written out here, with what they
        do in `ACTIONS`: three times as fast. The table has them all, for when a block ends within one.
        """
        data, position, stack, memo = self.data, self.position, self.stack, self.memo
        last = len(data) - _OPERAND_BYTES  # up to there a whole operand lies ahead
        for _ in range(_MAX_INSTRUCTIONS):
            opcode = data[position] if position < last else 0
            match opcode:
                case 0x94 if not self.memo_beyond:
                    memo.append(stack[-1])
                    position += 1
                case 0x72 if _uint(data, position + 1)[0] == len(memo) and not self.memo_beyond:  # r
                    memo.append(stack[-1])
                    position += 5
                case 0x68 if (index := data[position + 1]) < len(memo):  # h
                    stack.append(memo[index])
                    position += 2
                case 0x6A if (index := _uint(data, position + 1)[0]) < len(memo):  # j
                    stack.append(memo[index])
                    position += 5
                case 0x4B:  # K
                    stack.append(data[position + 1])
                    position += 2
                case 0x85:
                    stack[-1] = (stack[-1],)
                    position += 1
                case 0x4D:  # M
                    stack.append(data[position + 1] | data[position + 2] << 8)
                    position += 3
                case 0x28:  # (
                    self.marks.append(stack)
                    self.stack = stack = []
                    position += 1
                case 0x52 | 0x81:  # R, and NEWOBJ, which comes to the same
                    args = stack.pop()
                    self.call(stack.pop(), args)
                    position += 1
                case 0x29:  # )
                    stack.append(())
                    position += 1
                case 0x86 if len(stack) >= 2:
                    second = stack.pop()
                    stack[-1] = (stack[-1], second)
                    position += 1
                case 0x62:  # b
                    self.build()
                    position += 1
                case 0x7D:  # }
                    stack.append({})
                    position += 1
                case 0x75:  # u
                    pairs, self.stack = stack, self.marks.pop()
                    stack = self.stack
                    self.set_items(pairs)
                    position += 1
                case 0x58 if (end := position + 5 + _uint(data, position + 1)[0]) <= len(data):  # X
                    stack.append(data[position + 5 : end].decode("utf-8", "surrogatepass"))
                    position = end
                case 0x74:  # t
                    values = tuple(stack)
                    self.stack = stack = self.marks.pop()
                    stack.append(values)
                    position += 1
                case 0x51:  # Q
                    stack.append(self.resolve(stack.pop()))
                    position += 1
                case 0x89:
                    stack.append(False)
                    position += 1
                case 0x8C if (end := position + 2 + data[position + 1]) <= len(data):
                    stack.append(data[position + 2 : end].decode("utf-8", "surrogatepass"))
                    position = end
                case 0x4A:  # J
                    stack.append(_int(data, position + 1)[0])
                    position += 5
                case 0x71 if data[position + 1] == len(memo) and not self.memo_beyond:  # q
                    memo.append(stack[-1])
                    position += 2
                case _:
                    self.position = position
                    if self.step():
                        break
                    data, position, stack = self.data, self.position, self.stack
                    last = len(data) - _OPERAND_BYTES
        else:
            raise PickleError("it is too long to be a description of tensors")
        value = self.stack.pop()
        if self.stack or self.marks:  # a byte was lost where something else should have been taken from it
            raise PickleError("it ends in the middle of a value")
        return value

    def step(self) -> bool:
        """Execute one instruction by the table; return whether it is STOP."""
        opcode = self.take(1)[0]
        if opcode == STOP:
            return True
        action = ACTIONS.get(opcode)
        if action is None:
            raise PickleError(f"it uses the instruction {bytes([opcode])!r}, which torch never writes")
        action(self)
        return False

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

    def fetch(self, size: int) -> None:
        """Read on, so that at least `size` bytes lie ahead."""
        self.base += self.position
        left = self.limit - self.base
        if size > left:
            if self.limit == self.source.size:
                raise PickleEnds("it ends too early")
            raise PickleError("it is too large")
        self.data = self.source.read(self.base, min(max(size, _BLOCK_BYTES), left))
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
            key = checked_key(pairs[index])
            if key is not pairs[index]:
                self.count_copies((key,))  # a placeholder of its own, however often one value is the key
            target[key] = pairs[index + 1]

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
            self.push(Inert(function.path, args))

    def name(self, module: str, name: str) -> None:
        """Push a name of a class or function."""
        if len(module) + len(name) >= _MAX_NAME_CHARS:
            raise PickleError(f"it names something in {len(module) + len(name) + 1} characters")
        self.push(Name(f"{module}.{name}"))

    def persistent(self, identifier: Any) -> None:
        """Push what stands for something outside the pickle."""
        self.push(self.resolve(identifier))

    def get(self, index: int) -> None:
        """Push a remembered value."""
        self.push(self.memo[index] if 0 <= index < len(self.memo) else self.memo_beyond[index])

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
