"""Which elements of each tensor are made, where not all are. No numpy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Mapping
from typing import Protocol

from ema_cli.dataclass import dataclass

_STRETCH = 1 << 12  # elements that lie side by side
_PLACES = 14  # stretches between the beginning and the end
_STEP = 8  # elements of few bits share bytes: a stretch begins at a whole byte

Range = tuple[int, int]
"""First element, and number of elements."""


class Selection(Protocol):
    """Says which elements of each tensor are made."""

    def ranges(self, name: str, count: int) -> tuple[Range, ...]:
        """Return the stretches of a tensor of `count` elements, in order, none over another."""
        ...

    def kind(self, name: str) -> Hashable:
        """Return what tied tensors must have equal to be folded as one."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """One stretch of each of some tensors, by name; any other tensor is taken whole."""

    parts: Mapping[str, Range]

    def ranges(self, name: str, count: int) -> tuple[Range, ...]:
        """Return the stretch of a tensor of `count` elements."""
        return (self.parts.get(name, (0, count)),)

    def kind(self, name: str) -> Hashable:
        """Return the stretch: tied tensors of which others are made are folded one by one."""
        return self.parts.get(name)


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of each tensor, its end, and stretches at places that follow from the seed and the tensor's name.

    Who does not know the seed cannot know the places. A tensor that is not longer than the sample is taken whole.
    """

    seed: str
    most_elements: int = (_PLACES + 2) * _STRETCH

    @classmethod
    def of(cls, seed: str | None) -> Sample:
        """Return the sample of a seed; without one, of a random one."""
        return cls(os.urandom(8).hex() if seed is None else seed)

    def kind(self, name: str) -> Hashable:
        """Return the same for all: of tied tensors the elements of the first are made."""
        return None

    def ranges(self, name: str, count: int) -> tuple[Range, ...]:
        """Return the stretches of a tensor of `count` elements, in order; those that touch or overlap are one."""
        if count <= self.most_elements:
            return ((0, count),)
        last = -(-(count - _STRETCH) // _STEP)  # in steps, as the draws are
        digest = hashlib.shake_256(f"{self.seed}\0{name}".encode(errors="surrogatepass")).digest(8 * _PLACES)
        draws = (int.from_bytes(digest[8 * place : 8 * place + 8], "big") for place in range(_PLACES))
        ranges: list[Range] = []
        for step in sorted([0, last, *(draw % last for draw in draws)]):
            begin, end = step * _STEP, min(step * _STEP + _STRETCH, count)
            if ranges and begin <= sum(ranges[-1]):
                begin, _ = ranges.pop()
            ranges.append((begin, end - begin))
        return tuple(ranges)
