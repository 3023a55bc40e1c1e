"""The arithmetic of an update: averages move toward the model's tensors, in place."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import field
from itertools import pairwise

import torch
from torch import Tensor

from ema_cli.dataclass import dataclass

# The elements moved in one call: many small tensors together, or a part of a large one. With fewer, the calls take
# most of the time; with more, values that are used twice have left the cache before they are used again.
_BATCH = 1 << 21
# The most elements of a small tensor: copying many side by side takes less time than a call for each.
SMALL = 1 << 14


@dataclass(frozen=True, slots=True)
class _Careful:
    """Scratch for moving an average whose value may be infinite."""

    moved: Tensor
    at_once: Tensor
    other: Tensor

    @classmethod
    def like(cls, average: Tensor) -> _Careful:
        """Allocate the scratch for an average."""
        masks = (torch.empty_like(average, dtype=torch.bool) for _ in range(2))
        return cls(torch.empty_like(average), *masks)

    def move(self, average: Tensor, value: Tensor, share: float) -> None:
        """Move `average`: to an infinity at once, and not where it equals `value`: their difference may be NaN."""
        torch.eq(average, value, out=self.at_once)
        for is_infinite in () if value.is_complex() else (torch.isposinf, torch.isneginf):
            is_infinite(value, out=self.other)
            self.at_once.logical_or_(self.other)
        torch.lerp(average, value, share, out=self.moved)
        torch.where(self.at_once, value, self.moved, out=average)


@dataclass(slots=True)
class _Batch:
    """Tensors, or parts of large ones, on one device and of one dtype.

    If the tensors of each average lie side by side in memory, they are one tensor here, and the values are copied into
    one tensor, `gathered`. `parts`: for each tensor its number in the lists, and its slice if it is a part.
    """

    parts: list[tuple[int, slice | None]] = field(default_factory=list)
    count: int = 0  # elements
    flat: bool = False  # whether all tensors are viewed in one dimension
    careful: list[_Careful] = field(default_factory=list)  # scratch for each part, where they may hold infinities
    values: list[Tensor] = field(default_factory=list)
    averages: list[list[Tensor]] = field(default_factory=list)  # a list for each average
    gathered: Tensor | None = None  # scratch in the values' dtype
    widened: list[Tensor] = field(default_factory=list)  # scratch in the averages' dtype, if the values' is narrower


class Mover:
    """Move averages toward `values`: average += share * (value - average), for several averages in one pass.

    Scratch memory is allocated once, in the constructor. Equal bits of value and average stay as they are.

    Args:
        values: the tensors to move toward.
        averages: for each average a list as long as `values`, of tensors with the same shapes and dtypes at least as
            wide.
        careful: the numbers of tensors that may hold infinities: an average becomes one at once, and stays it while the
            value does.
    """

    def __init__(self, values: Sequence[Tensor], averages: Sequence[Sequence[Tensor]], careful: set[int]) -> None:
        self._averages = averages
        self._values = values
        self._layouts = _layouts(values)
        self._batches: list[_Batch] = []
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, (value, average) in enumerate(zip(values, averages[0], strict=True)):
            if value.numel():
                key = (value.device, value.dtype, average.dtype, value.numel() <= SMALL, number in careful)
                groups.setdefault(key, []).append(number)
        for numbers in groups.values():
            widens = values[numbers[0]].dtype != averages[0][numbers[0]].dtype
            used_twice = widens or len(averages) > 1 or values[numbers[0]].numel() <= SMALL
            batches = list(self._cut(numbers, _BATCH if used_twice else sys.maxsize))
            for batch in batches:
                self._add_views(batch)
                batch.careful = [_Careful.like(part) for part in batch.averages[0]] if numbers[0] in careful else []
            if widens:
                _add_scratch(batches)
            self._batches += batches

    def take(self, values: Sequence[Tensor]) -> bool:
        """Continue with `values` elsewhere in memory; return False, and change nothing, if their layout differs."""
        if _layouts(values) != self._layouts:
            return False
        self._values = values
        for batch in self._batches:
            batch.values = _views(values, batch.parts, flat=batch.flat)
        return True

    def move(self, shares: Sequence[float]) -> None:
        """Move each average by its share in [0, 1]."""
        for batch in self._batches:
            values = batch.values
            if batch.gathered is not None:
                torch.cat(values, out=batch.gathered)
                values = [batch.gathered]
            if batch.widened:
                torch._foreach_copy_(batch.widened, values)
                values = batch.widened
            for parts, share in zip(batch.averages, shares, strict=True):
                if batch.careful and 0 < share < 1:
                    for average, value, scratch in zip(parts, values, batch.careful, strict=True):
                        scratch.move(average, value, share)
                elif share == 1:  # by copy: value - average could overflow
                    torch._foreach_copy_(parts, values)
                elif share:
                    torch._foreach_lerp_(parts, values, share)

    def _cut(self, numbers: Sequence[int], most: int) -> Iterator[_Batch]:
        """Cut tensors of one device, dtype and size class into batches of at most so many elements."""
        batch = _Batch()
        for number in numbers:
            count, parts = self._values[number].numel(), list[tuple[int, slice | None]]([(number, None)])
            if count > most and self._is_contiguous(number):
                parts = [(number, slice(start, start + most)) for start in range(0, count, most)]
                count = most
            for part in parts:
                if batch.parts and batch.count + count > most:
                    yield batch
                    batch = _Batch()
                batch.parts.append(part)
                batch.count += count
        if batch.parts:
            yield batch

    def _is_contiguous(self, number: int) -> bool:
        return all(tensors[number].is_contiguous() for tensors in (self._values, *self._averages))

    def _add_views(self, batch: _Batch) -> None:
        """Fill a batch with views of its tensors, as one tensor for each average if they lie side by side."""
        batch.flat = len(batch.parts) > 1 and all(self._is_contiguous(number) for number, _ in batch.parts)
        batch.averages = [_views(averages, batch.parts, flat=batch.flat) for averages in self._averages]
        batch.count = sum(part.numel() for part in batch.averages[0])
        if batch.flat and all(_lie_side_by_side(parts) for parts in batch.averages):
            batch.averages = [[parts[0].as_strided((batch.count,), (1,))] for parts in batch.averages]
            batch.gathered = self._values[batch.parts[0][0]].new_empty(batch.count)
        batch.values = _views(self._values, batch.parts, flat=batch.flat)


def _views(tensors: Sequence[Tensor], parts: Sequence[tuple[int, slice | None]], *, flat: bool) -> list[Tensor]:
    """Return views of tensors, or of parts of them; in one dimension if `flat`."""
    if flat:
        return [tensors[number].detach().view(-1)[part or slice(None)] for number, part in parts]
    return [tensors[number] if part is None else tensors[number].detach().view(-1)[part] for number, part in parts]


def _layouts(values: Sequence[Tensor]) -> list[bool]:
    return [value.is_contiguous() for value in values]


def _lie_side_by_side(parts: Sequence[Tensor]) -> bool:
    """Return whether each tensor begins in memory at the end of the one before."""
    return all(
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.storage_offset() + one.numel() == other.storage_offset()
        for one, other in pairwise(parts)
    )


def _add_scratch(batches: Sequence[_Batch]) -> None:
    """Give the batches scratch for widened values: one piece of memory, which all of them share."""
    memory = batches[0].averages[0][0].new_empty(max(batch.count for batch in batches))
    for batch in batches:
        start = 0
        for part in batch.averages[0]:
            batch.widened.append(memory[start : start + part.numel()].as_strided(part.shape, part.stride(), start))
            start += part.numel()
