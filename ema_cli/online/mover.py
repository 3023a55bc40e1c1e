"""The arithmetic of an update: averages move toward the model's tensors, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements. Many small tensors take less time in one call for all; large ones, one by one, stay in the cache.
_SMALL = 1 << 15
# Of a tensor that is widened first: a part that fits the cache, so that it is widened and used there.
_PART = 1 << 18


@dataclass(slots=True)
class _Group:
    """Tensors on one device, with one type and one way to be averaged; `numbers` are their places in the lists."""

    numbers: list[int]
    small: bool
    widened: list[Tensor]  # scratch of the averages' type: one for each small tensor, one for all large ones


class Mover:
    """Moves averages toward `values`: average += share * (value - average), for several averages in one pass.

    `averages` holds, for each average, a list of tensors as long as `values`, of their shapes, and at least as wide.
    Scratch is allocated once, here. Where value and average are bit-equal they stay so; those in `careful` may hold
    infinities, which stay what they are where both are equal.
    """

    def __init__(self, values: Sequence[Tensor], averages: Sequence[Sequence[Tensor]], careful: set[int]) -> None:
        self._averages = averages
        self._careful = sorted(careful)
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, (value, average) in enumerate(zip(values, averages[0], strict=True)):
            if number not in careful and value.numel():
                key = (value.device, value.dtype, average.dtype, value.numel() <= _SMALL)
                groups.setdefault(key, []).append(number)
        self._groups = [self._group(values, numbers) for numbers in groups.values()]

    def _group(self, values: Sequence[Tensor], numbers: list[int]) -> _Group:
        firsts = [self._averages[0][number] for number in numbers]
        small = values[numbers[0]].numel() <= _SMALL
        if values[numbers[0]].dtype == firsts[0].dtype:
            return _Group(numbers, small, [])
        if small:
            return _Group(numbers, small, [torch.empty_like(first) for first in firsts])
        regular = [first.numel() for first in firsts if not first.is_contiguous()]
        return _Group(numbers, small, [firsts[0].new_empty(max([_PART, *regular]))])

    def move(self, values: Sequence[Tensor], shares: Sequence[float]) -> None:
        """Move each average by its share in [0, 1]."""
        for group in self._groups:
            if group.small:
                self._move_small(group, [values[number] for number in group.numbers], shares)
            elif group.widened:
                for number in group.numbers:
                    self._move_widened(group.widened[0], number, values[number], shares)
            else:
                for number in group.numbers:
                    for averages, share in zip(self._averages, shares, strict=True):
                        _lerp(averages[number], values[number], share)
        for number in self._careful:
            value = values[number].to(self._averages[0][number].dtype)
            for averages, share in zip(self._averages, shares, strict=True):
                _lerp_careful(averages[number], value, share)

    def _move_small(self, group: _Group, values: list[Tensor], shares: Sequence[float]) -> None:
        if group.widened:
            torch._foreach_copy_(group.widened, values)
            values = group.widened
        for averages, share in zip(self._averages, shares, strict=True):
            moved = [averages[number] for number in group.numbers]
            if share == 1:
                torch._foreach_copy_(moved, values)
            elif share:
                torch._foreach_lerp_(moved, values, share)

    def _move_widened(self, scratch: Tensor, number: int, value: Tensor, shares: Sequence[float]) -> None:
        first = self._averages[0][number]
        if not first.is_contiguous():
            wide = scratch[: first.numel()].as_strided(first.shape, first.stride())
            wide.copy_(value)
            for averages, share in zip(self._averages, shares, strict=True):
                _lerp(averages[number], wide, share)
            return
        value, flat = value.reshape(-1), [averages[number].view(-1) for averages in self._averages]
        for start in range(0, len(value), _PART):
            part = value[start : start + _PART]
            wide = scratch[: len(part)]
            wide.copy_(part)
            for average, share in zip(flat, shares, strict=True):
                _lerp(average[start : start + _PART], wide, share)


def _lerp(average: Tensor, value: Tensor, share: float) -> None:
    """Move `average`; a share of 1 copies, which a sum of differences does only where nothing overflows."""
    if share == 1:
        average.copy_(value)
    elif share:
        average.lerp_(value, share)


def _lerp_careful(average: Tensor, value: Tensor, share: float) -> None:
    """Move `average` but for what is equal already: the difference of two infinities is none."""
    if share == 1:
        average.copy_(value)
    elif share:
        average.copy_(torch.where(average == value, average, average.lerp(value, share)))
