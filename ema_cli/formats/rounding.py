"""Floats of 32 bits rounded to 16, a few of them, without numpy: to compare what is stored twice."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

_SIGN, MAGNITUDE = 0x8000, 0x7FFF  # of the types of 16 bits
_LEAST_NORMAL = {"BF16": 0x0080, "F16": 0x0400}
_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00}
ROUNDED = frozenset(_INFINITY)  # the names of the types


def round_to(dtype: str, data: bytes) -> array[int]:
    """Return float32 numbers in a type of 16 bits, each rounded once, to even, as its bits."""
    if dtype == "BF16":
        words = array("I", data)
        # What is carried over from half of the last place that stays, and a tie to even.
        return array("H", [(bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF for bits in words])
    return array("H", [_half(number) for number in struct.unpack(f"<{len(data) // 4}f", data)])


def widened(dtype: str, bits: Sequence[int]) -> bytes:
    """Return numbers of a type of 16 bits, given as their bits, in float32."""
    if dtype == "BF16":
        return array("I", [each << 16 for each in bits]).tobytes()
    return struct.pack(f"<{len(bits)}f", *struct.unpack(f"<{len(bits)}e", array("H", bits).tobytes()))


def steps_apart(dtype: str, one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return how many numbers of a 16-bit type lie between two, for each pair of bits.

    0 for what is not finite, or so small that some processors take it for 0.
    """
    least, infinity = _LEAST_NORMAL[dtype], _INFINITY[dtype]
    steps = []
    for mine, theirs in zip(one, other, strict=True):
        sizes = mine & MAGNITUDE, theirs & MAGNITUDE
        is_out = max(sizes) < least or max(sizes) >= infinity
        steps.append(0 if is_out else abs(_ordered(mine) - _ordered(theirs)))
    return steps


def _ordered(bits: int) -> int:
    return -(bits & MAGNITUDE) if bits & _SIGN else bits


def _half(number: float) -> int:
    try:
        return int.from_bytes(struct.pack("<e", number), "little")
    except OverflowError:
        return _INFINITY["F16"] | (_SIGN if number < 0 else 0)
