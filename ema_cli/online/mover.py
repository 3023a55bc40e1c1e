"""The arithmetic of an update: averages move toward the model's tensors, in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

# Elements that are moved in one call: many small tensors together, a large one in parts. Fewer, and the calls take the
# time; more, and what was widened to the averages' type is no longer in the cache when it is used.
_BATCH = 1 << 21
# Elements of a small tensor: many of them are sooner copied side by side than moved by as many calls.
SMALL = 1 << 14


@dataclass(slots=True)
class _Batch:
    """Tensors, or parts of large ones, on one device and of one type; `parts` are their places in the lists.

    Where all averages lie side by side, each is one tensor here, and the values are `gathered` in one.
    """

    parts: list[tuple[int, slice | None]] = field(default_factory=list)
    count: int = 0  # elements
    flat: bool = False  # whether all are taken in one dimension
    values: list[Tensor] = field(default_factory=list)
    averages: list[list[Tensor]] = field(default_factory=list)  # of each average
    gathered: Tensor | None = None  # scratch of the values' type
    widened: list[Tensor] = field(default_factory=list)  # scratch of the averages' type, where the values' is narrower


class Mover:
    """Moves averages toward `values`: average += share * (value - average), for several averages in one pass.

    `averages` holds, for each average, a list of tensors as long as `values`, of their shapes, and at least as wide.
    Scratch is allocated once, here. Where value and average are bit-equal they stay so; those in `careful` may hold
    infinities, which stay what they are where both are equal.
    """

    def __init__(self, values: Sequence[Tensor], averages: Sequence[Sequence[Tensor]], careful: set[int]) -> None:
        self._averages = averages
        self._careful = sorted(careful)
        self._values = values
        self._layouts = _layouts(values)
        self._batches: list[_Batch] = []
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, (value, average) in enumerate(zip(values, averages[0], strict=True)):
            if number not in careful and value.numel():
                key = (value.device, value.dtype, average.dtype, value.numel() <= SMALL)
                groups.setdefault(key, []).append(number)
        for numbers in groups.values():
            batches = list(self._cut(numbers))
            for batch in batches:
                self._place(batch)
            if values[numbers[0]].dtype != averages[0][numbers[0]].dtype:
                _add_scratch(batches)
            self._batches += batches

    def take(self, values: Sequence[Tensor]) -> bool:
        """Go on with `values` that lie elsewhere; return False where they are laid out in another way."""
        if _layouts(values) != self._layouts:
            return False
        self._values = values
        for batch in self._batches:
            batch.values = _taken(values, batch.parts, flat=batch.flat)
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
                if share == 1:  # which a sum of differences gives only where nothing overflows
                    torch._foreach_copy_(parts, values)
                elif share:
                    torch._foreach_lerp_(parts, values, share)
        for number in self._careful:
            value = self._values[number].to(self._averages[0][number].dtype)
            for averages, share in zip(self._averages, shares, strict=True):
                _lerp_careful(averages[number], value, share)

    def _cut(self, numbers: Sequence[int]) -> Iterator[_Batch]:
        """Yield batches of tensors of one kind."""
        batch = _Batch()
        for number in numbers:
            count, parts = self._values[number].numel(), list[tuple[int, slice | None]]([(number, None)])
            if count > _BATCH and self._is_in_order(number):
                parts = [(number, slice(start, start + _BATCH)) for start in range(0, count, _BATCH)]
                count = _BATCH
            for part in parts:
                if batch.parts and batch.count + count > _BATCH:
                    yield batch
                    batch = _Batch()
                batch.parts.append(part)
                batch.count += count
        if batch.parts:
            yield batch

    def _is_in_order(self, number: int) -> bool:
        return all(each[number].is_contiguous() for each in (self._values, *self._averages))

    def _place(self, batch: _Batch) -> None:
        """Find the tensors of a batch, and whether it can be moved as one."""
        batch.flat = len(batch.parts) > 1 and all(self._is_in_order(number) for number, _ in batch.parts)
        batch.averages = [_taken(averages, batch.parts, flat=batch.flat) for averages in self._averages]
        batch.count = sum(part.numel() for part in batch.averages[0])
        if batch.flat and all(_lie_side_by_side(parts) for parts in batch.averages):
            batch.averages = [[parts[0].as_strided((batch.count,), (1,))] for parts in batch.averages]
            batch.gathered = self._values[batch.parts[0][0]].new_empty(batch.count)
        batch.values = _taken(self._values, batch.parts, flat=batch.flat)


def _taken(tensors: Sequence[Tensor], parts: Sequence[tuple[int, slice | None]], *, flat: bool) -> list[Tensor]:
    """Return tensors, or parts of them, in one dimension if `flat`: as views."""
    if flat:
        return [tensors[number].detach().view(-1)[part or slice(None)] for number, part in parts]
    return [tensors[number] if part is None else tensors[number].detach().view(-1)[part] for number, part in parts]


def _layouts(values: Sequence[Tensor]) -> list[bool]:
    return [value.is_contiguous() for value in values]


def _lie_side_by_side(parts: Sequence[Tensor]) -> bool:
    """Return whether each begins in memory where the one before ends."""
    return all(
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.storage_offset() + one.numel() == other.storage_offset()
        for one, other in pairwise(parts)
    )


def _add_scratch(batches: Sequence[_Batch]) -> None:
    """Give all batches one piece of memory for what they widen, cut as each needs it."""
    memory = batches[0].averages[0][0].new_empty(max(batch.count for batch in batches))
    for batch in batches:
        start = 0
        for part in batch.averages[0]:
            batch.widened.append(memory[start : start + part.numel()].as_strided(part.shape, part.stride(), start))
            start += part.numel()


def _lerp_careful(average: Tensor, value: Tensor, share: float) -> None:
    """Move `average` but for what is equal already: the difference of two infinities is none."""
    if share == 1:
        average.copy_(value)
    elif share:
        average.copy_(torch.where(average == value, average, average.lerp(value, share)))
