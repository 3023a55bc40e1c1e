"""The arithmetic of an update: averages move toward the model's tensors, in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Elements that are moved in one call: many small tensors together, a large one in parts. Fewer, and the calls take the
# time; more, and what was widened to the averages' type is no longer in the cache when it is used.
_BATCH = 1 << 21


@dataclass(slots=True)
class _Batch:
    """Tensors, or parts of one, on one device and of one type; `parts` are their places in the lists."""

    parts: list[tuple[int, slice | None]] = field(default_factory=list)
    averages: list[list[Tensor]] = field(default_factory=list)  # of each average, the parts
    widened: list[Tensor] = field(default_factory=list)  # scratch of the averages' type, where the model's is narrower
    count: int = 0  # elements


class Mover:
    """Moves averages toward `values`: average += share * (value - average), for several averages in one pass.

    `averages` holds, for each average, a list of tensors as long as `values`, of their shapes, and at least as wide.
    Scratch is allocated once, here. Where value and average are bit-equal they stay so; those in `careful` may hold
    infinities, which stay what they are where both are equal.
    """

    def __init__(self, values: Sequence[Tensor], averages: Sequence[Sequence[Tensor]], careful: set[int]) -> None:
        self._averages = averages
        self._careful = sorted(careful)
        self._batches: list[_Batch] = []
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, (value, average) in enumerate(zip(values, averages[0], strict=True)):
            if number not in careful and value.numel():
                groups.setdefault((value.device, value.dtype, average.dtype), []).append(number)
        for numbers in groups.values():
            batches = list(self._cut(values, numbers))
            if values[numbers[0]].dtype != averages[0][numbers[0]].dtype:
                self._add_scratch(batches)
            self._batches += batches

    def _cut(self, values: Sequence[Tensor], numbers: Sequence[int]) -> Iterator[_Batch]:
        """Yield batches of tensors of one kind."""
        batch = _Batch()
        for number in numbers:
            count, parts = values[number].numel(), list[tuple[int, slice | None]]([(number, None)])
            if count > _BATCH and all(each[number].is_contiguous() for each in (values, *self._averages)):
                parts = [(number, slice(start, start + _BATCH)) for start in range(0, count, _BATCH)]
                count = _BATCH
            for part in parts:
                if batch.parts and batch.count + count > _BATCH:
                    yield self._filled(batch)
                    batch = _Batch()
                batch.parts.append(part)
                batch.count += count
        if batch.parts:
            yield self._filled(batch)

    def _filled(self, batch: _Batch) -> _Batch:
        batch.averages = [_taken(averages, batch.parts) for averages in self._averages]
        batch.count = sum(part.numel() for part in batch.averages[0])
        return batch

    def _add_scratch(self, batches: Sequence[_Batch]) -> None:
        """Give all batches one piece of memory, cut as each needs it."""
        memory = batches[0].averages[0][0].new_empty(max(batch.count for batch in batches))
        for batch in batches:
            start = 0
            for part in batch.averages[0]:
                batch.widened.append(memory[start : start + part.numel()].as_strided(part.shape, part.stride(), start))
                start += part.numel()

    def move(self, values: Sequence[Tensor], shares: Sequence[float]) -> None:
        """Move each average by its share in [0, 1]."""
        for batch in self._batches:
            moved = _taken(values, batch.parts)
            if batch.widened:
                torch._foreach_copy_(batch.widened, moved)
                moved = batch.widened
            for parts, share in zip(batch.averages, shares, strict=True):
                if share == 1:  # which a sum of differences gives only where nothing overflows
                    torch._foreach_copy_(parts, moved)
                elif share:
                    torch._foreach_lerp_(parts, moved, share)
        for number in self._careful:
            value = values[number].to(self._averages[0][number].dtype)
            for averages, share in zip(self._averages, shares, strict=True):
                _lerp_careful(averages[number], value, share)


def _taken(tensors: Sequence[Tensor], parts: Sequence[tuple[int, slice | None]]) -> list[Tensor]:
    return [tensors[number] if part is None else tensors[number].reshape(-1)[part] for number, part in parts]


def _lerp_careful(average: Tensor, value: Tensor, share: float) -> None:
    """Move `average` but for what is equal already: the difference of two infinities is none."""
    if share == 1:
        average.copy_(value)
    elif share:
        average.copy_(torch.where(average == value, average, average.lerp(value, share)))
