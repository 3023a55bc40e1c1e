"""Write the pickle that describes a state dict, as `torch.save` does: names, and where each tensor's bytes lie.

It uses only what torch itself writes, so that `torch.load(weights_only=True)` reads it in any version since 1.6 that
has the dtypes. No torch here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from ema_cli.checkpoint import TensorSpec

_BATCH = 1000  # items that are set at once, as by Python's own pickler: a reader keeps them on its stack
_ORDERED_DICT = b"ccollections\nOrderedDict\n"
_TYPED, _UNTYPED = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n"

_Item = TypeVar("_Item")


class NoTorchType(Exception):
    """A tensor that torch has no type for."""


def pickle_state_dict(
    specs: Mapping[str, TensorSpec], key: str = "", beside: Mapping[str, bytes] | None = None
) -> bytes:
    """Return the pickle of an OrderedDict of tensors, each contiguous in a storage of its own: 0, 1, 2, ... in order.

    Args:
        specs: the tensors.
        key: where it stands in a dict around it; empty: there is none.
        beside: the other entries of that dict; the value of each as the instructions that make it.

    Raises:
        NoTorchType: for a tensor that torch has no type for.
    """
    writer = PickleWriter()
    if key:
        writer.out += b"}("
        writer.text(key)
    writer.constant(_ORDERED_DICT)
    writer.out += b")R"
    for number, (name, spec) in writer.items(specs.items()):
        writer.text(name)
        writer.tensor(str(number), spec, _torch_shape(name, spec))
    for name, value in (beside or {}).items():  # which may remember other values under our numbers from here on
        writer.text(name)
        writer.out += value
    writer.out += b"u." if key else b"."
    return bytes(writer.out)


def pickle_tensor(name: str, spec: TensorSpec) -> bytes:
    """Return the pickle of a tensor alone, contiguous in storage 0.

    Raises:
        NoTorchType: where torch has no type for it.
    """
    writer = PickleWriter()
    writer.tensor("0", spec, _torch_shape(name, spec))
    writer.out += b"."
    return bytes(writer.out)


class PickleWriter:
    """The pickle so far. Instructions that come again and again are remembered in its memo, and referred to."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[bytes, int] = {}

    def items(self, items: Iterable[_Item]) -> Iterator[tuple[int, _Item]]:
        """Yield items with their numbers, each to be written as a key and a value of the dict written before."""
        number = -1
        for number, item in enumerate(items):
            if number % _BATCH == 0:
                self.out += b"u(" if number else b"("
            yield number, item
        self.out += b"u" if number >= 0 else b""

    def tensor(self, key: str, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        """Write the call that makes a tensor of the storage `key`; `shape` is as torch counts its elements."""
        storage = spec.dtype.torch_storage
        self.constant(_TYPED if storage else _UNTYPED)
        self.out += b"(("
        self.word("storage")
        self.constant(f"ctorch\n{storage}\n".encode() if storage else b"ctorch.storage\nUntypedStorage\n")
        self.text(key)
        self.word("cpu")
        self.integer(spec.count if storage else spec.nbytes)
        self.out += b"tQ"
        self.integer(0)
        self.sizes(shape)
        self.sizes(_strides(shape))
        self.out += b"\x89"  # requires no gradient
        self.constant(_ORDERED_DICT)  # nor has hooks
        self.out += b")R"
        if not storage:
            self.constant(f"ctorch\n{spec.dtype.torch}\n".encode())
        self.out += b"tR"

    def constant(self, instruction: bytes) -> None:
        """Write an instruction that pushes a value, or refer to that value."""
        number = self.memo.get(instruction)
        if number is not None:
            self.out += b"h" + bytes([number])
            return
        number = self.memo[instruction] = len(self.memo)
        self.out += instruction + b"q" + bytes([number])

    def text(self, value: str) -> None:
        """Write a text."""
        self.out += _text(value)

    def word(self, value: str) -> None:
        """Write a text that comes again and again."""
        self.constant(_text(value))

    def sizes(self, values: tuple[int, ...]) -> None:
        """Write a tuple of counts."""
        if len(values) > 3:
            self.out += b"("
        for value in values:
            self.integer(value)
        self.out += (b")", b"\x85", b"\x86", b"\x87")[len(values)] if len(values) <= 3 else b"t"

    def integer(self, value: int) -> None:
        """Write a count in the shortest of its forms."""
        if value < 1 << 8:
            self.out += b"K" + bytes([value])
        elif value < 1 << 16:
            self.out += b"M" + value.to_bytes(2, "little")
        elif value < 1 << 31:
            self.out += b"J" + value.to_bytes(4, "little")
        else:
            size = value.bit_length() // 8 + 1  # with room for a sign
            self.out += b"\x8a" + bytes([size]) + value.to_bytes(size, "little")


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _torch_shape(name: str, spec: TensorSpec) -> tuple[int, ...]:
    """Return a tensor's shape as torch counts it, in pairs of F4.

    Raises:
        NoTorchType: where torch has no type for it, or the last dimension has no whole pairs.
    """
    group = spec.dtype.torch_group
    if spec.dtype.torch is None or (group > 1 and (not spec.shape or spec.shape[-1] % group)):
        raise NoTorchType(f"'{name}' is {spec}, which torch has no type for")
    return spec.shape if group == 1 else (*spec.shape[:-1], spec.shape[-1] // group)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements, as torch gives them."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))
