"""Batches of items that the pickles of one run have in common: what they are read into is taken over.

A pickle puts the tensors of a model into their dict a thousand at a time, and checkpoints of one run have these
instructions alike, byte for byte. So the bytes of a batch are kept with what they were read into, and where they come
again they are not executed again.

What the bytes mean depends on what was remembered before them. So that has to be equal, too, as far as they use it; and
a batch is only kept if nothing in it can be changed later, and all that it remembers is numbered in order.
"""

from __future__ import annotations

import struct
import threading
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.values import Name, Storage, TensorRef

_LEAST_ITEMS = 64
MOST_BYTES = 1 << 20  # of all batches; with what they are read into they take ten times as much
_PLAIN = (str, int, float, bool, type(None), Name, Storage, TensorRef)
_SAME = (str, Name, Storage)  # with equal values nothing else tells two of them apart
_USED = (*_SAME, TensorRef)

# The instructions that a batch of tensors is made of, with their lengths. Those whose length varies, or that use what
# is remembered, are in `_uses`.
_LENGTHS = {ord(code): 1 for code in "()tQRN}ub"} | dict.fromkeys(range(0x85, 0x8A), 1) | {0x4B: 2, 0x4D: 3, 0x4A: 5}
_uint = struct.Struct("<I").unpack_from


@dataclass(slots=True)
class _Batch:
    """The instructions of one batch, from behind its mark to its end, and what they were read into.

    Attributes:
        data: their bytes.
        pairs: the keys and values, one after another.
        remembered: what was added to the memo.
        hooks: the places in it of hooks of tensors, which are empty dicts, and the one thing that could be changed:
            each pickle gets its own.
        before: what could be used of the memo before the batch, by its number.
        uses: what is used of that; None as long as nobody looked.
        names: the classes and functions that it names itself, once somebody looked.
    """

    data: bytes
    pairs: list[Any]
    remembered: list[Any]
    hooks: list[int]
    before: dict[int, Any]
    uses: dict[int, Any] | None = None
    names: frozenset[str] = frozenset()


class Batches:
    """Batches that were read, by the length of the memo before them. Pickles may be read in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: dict[int, _Batch] = {}
        self._nbytes = 0
        self._taken = False  # whether any was taken over since there was room

    def take_over(self, machine: Machine, position: int) -> int:
        """Do what the batch at `position` does if it is known; return the position behind it, or 0."""
        batch = self._batches.get(len(machine.memo))
        if batch is None or machine.memo_beyond or not machine.data.startswith(batch.data, position):
            return 0
        uses = self._look(batch, len(machine.memo))
        if uses is None or not all(_is_same(machine.memo[number], value) for number, value in uses.items()):
            return 0
        first = len(machine.memo)
        machine.memo.extend(batch.remembered)
        for number in batch.hooks:
            machine.memo[first + number] = {}
        machine.set_items(batch.pairs)
        if machine.names is not None:
            machine.names.update(batch.names)
        self._taken = True
        return position + len(batch.data)

    def keep(self, machine: Machine, begin: int, first: int, end: int, pairs: list[Any]) -> None:
        """Keep a batch that was just executed: its bytes from `begin` to `end`, and its memo from number `first`."""
        remembered = machine.memo[first:]
        if (
            len(pairs) < 2 * _LEAST_ITEMS
            or machine.memo_beyond
            or not all(isinstance(value, _PLAIN) for value in pairs)
            or not all(isinstance(value, (*_PLAIN, tuple)) or value == {} for value in remembered)
        ):
            return
        if self._nbytes + end - begin > MOST_BYTES:
            if self._taken or end - begin > MOST_BYTES:
                self._taken = False
                return  # those that are here are of use
            self._batches.clear()
            self._nbytes = 0
        before = {number: value for number, value in enumerate(machine.memo[:first]) if isinstance(value, _USED)}
        hooks = [number for number, value in enumerate(remembered) if type(value) is dict]
        self._batches[first] = _Batch(machine.data[begin:end], pairs, remembered, hooks, before)
        self._nbytes += end - begin

    def _look(self, batch: _Batch, first: int) -> dict[int, Any] | None:
        """Return what a batch uses of the memo before it, None where it must not be taken over."""
        with self._lock:
            if batch.uses is None:
                names = set[str]()
                numbers = _uses(batch.data, first, names)
                if numbers is None or not numbers <= batch.before.keys():
                    self._batches.pop(first, None)
                    return None
                batch.names = frozenset(names)
                batch.uses = {number: batch.before[number] for number in numbers}
                batch.before = {}
            return batch.uses


def _is_same(value: Any, other: Any) -> bool:
    return value is other or (type(value) is type(other) and isinstance(value, _SAME) and value == other)


def _uses(data: bytes, first: int, names: set[str]) -> set[int] | None:
    """Return which numbers below `first` the instructions use of the memo; put what they name into `names`.

    None where one of them is not among those that describe tensors, or does not remember under the next number.
    """
    position, remembered, uses = 0, first, set[int]()
    while position < len(data):
        code = data[position]
        if code in (0x71, 0x72, 0x94):  # q, r, MEMOIZE
            number = (data[position + 1], *_uint(data, position + 1))[code - 0x71] if code < 0x94 else remembered
            if number != remembered:
                return None
            remembered += 1
            position += {0x71: 2, 0x72: 5, 0x94: 1}[code]
        elif code in (0x68, 0x6A):  # h, j
            number = data[position + 1] if code == 0x68 else _uint(data, position + 1)[0]
            if number < first:
                uses.add(number)
            position += 2 if code == 0x68 else 5
        elif code == 0x58:  # X
            position += 5 + _uint(data, position + 1)[0]
        elif code == 0x8C:
            position += 2 + data[position + 1]
        elif code == 0x63:  # c, with two lines
            end = data.index(b"\n", data.index(b"\n", position) + 1)
            names.add(data[position + 1 : end].decode().replace("\n", "."))
            position = end + 1
        elif code in _LENGTHS:
            position += _LENGTHS[code]
        else:
            return None
    return uses
