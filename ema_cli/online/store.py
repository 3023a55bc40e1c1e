"""Keep the tensors of the averages of a live model: allocate and move them, and write them into a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ema_cli.errors import RunError
from ema_cli.online.mover import SMALL, Mover
from ema_cli.online.places import write_into
from ema_cli.online.sharded import cut_like, local, locals_of, placed_like, reshard
from ema_cli.online.tracked import AVERAGED_IN, Slot, Tracked

Offload = Literal["cpu"] | None


@contextmanager
def no_gradients() -> Iterator[None]:
    """Run the block under `no_grad`, also inside `inference_mode`, where tensors could not be updated later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Store:
    """The tensors of `count` averages of a model, on its device or, with `offload`, on the host.

    With `offload`, an update only starts the copy of the model to the host. The averages are moved at the next update,
    or when they are needed (`settle`); the device need not wait.

    Attributes:
        tracked: the tensors of the model.
        averages: for each average a tensor for each of `tracked.averaged`, in the dtype that `AVERAGED_IN` gives; of a
            sharded tensor, this process's part.
        copies: the tensors of `tracked.copied` as they were at the last event.
    """

    def __init__(self, tracked: Tracked, count: int, offload: Offload) -> None:
        self.tracked = tracked
        self._offload = offload
        self._pinned = offload is not None and torch.cuda.is_available()
        values = tracked.values
        self.averages = [self._allocate(values) for _ in range(count)]
        self.copies = [self.like(local(slot.tensor)) for slot in tracked.copied]
        self._staged = [self.like(value) for value in values] if offload else []
        self._due: Sequence[float] | None = None  # shares of an update whose values are staged, not yet applied
        self._copied: list[torch.cuda.Event] = []  # the end of the copy from each device of the model
        self._mover: Mover | None = None
        self.copy()

    def __getstate__(self) -> dict[str, Any]:
        # A pickle does not keep views of the same memory together: the mover would update tensors of its own.
        self.settle()
        return {**self.__dict__, "_mover": None}

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate a tensor of that shape on the averages' device; `dtype` None: the dtype of the tensor."""
        if self._offload is None:
            return torch.empty_like(tensor, dtype=dtype, requires_grad=False)
        return torch.empty_like(tensor, dtype=dtype, device=self._offload, pin_memory=self._pinned, requires_grad=False)

    def _allocate(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Allocate the tensors of one average. Small ones lie side by side, so that one call can move all of them."""
        # Buffers apart from parameters, as they are moved with more care.
        sizes: dict[tuple[torch.device, torch.dtype, bool], int] = {}
        kinds = [slot.is_parameter for slot in self.tracked.averaged]
        for value, is_parameter in zip(values, kinds, strict=True):
            if _is_small(value):
                key = value.device, value.dtype, is_parameter
                sizes[key] = sizes.get(key, 0) + value.numel()
        memory = {
            key: self.like(torch.empty(size, dtype=key[1], device=key[0]), AVERAGED_IN[key[1]])
            for key, size in sizes.items()
        }
        taken = dict.fromkeys(memory, 0)
        averages = []
        for value, is_parameter in zip(values, kinds, strict=True):
            if _is_small(value):
                key = value.device, value.dtype, is_parameter
                averages.append(memory[key][taken[key] : taken[key] + value.numel()].view(value.shape))
                taken[key] += value.numel()
            else:
                averages.append(self.like(value, AVERAGED_IN[value.dtype]))
        return averages

    def copy(self) -> None:
        """Make all averages equal to the model."""
        self._due = None
        values = self.tracked.values
        for averages in self.averages:
            if averages:
                torch._foreach_copy_(averages, values)
        self._copy_others(wait=True)

    def move(self, shares: Sequence[float]) -> None:
        """Move each average toward the model by its share in [0, 1]."""
        self.settle()
        values = self.tracked.values
        if not self._offload:
            if self.tracked.is_sharded:
                self.take_values()  # the parts of sharded tensors may have moved in memory
            self._mover_for(values).move(shares)
            self._copy_others(wait=True)
            return
        for staged, value in zip(self._staged, values, strict=True):
            staged.copy_(value, non_blocking=self._pinned)
        self._copy_others(wait=not self._pinned)
        devices = {tensor.device for tensor in self.live() if tensor.is_cuda}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]
        self._due = shares

    def settle(self) -> None:
        """Finish an update that has only been staged, if there is one."""
        if self._due is None:
            return
        for event in self._copied:
            event.synchronize()
        shares, self._due = self._due, None
        self._mover_for(self._staged).move(shares)

    def live(self) -> list[Tensor]:
        """Return this process's part of the model's averaged and copied tensors, with their present values."""
        return locals_of((*self.tracked.averaged, *self.tracked.copied))

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of the `live` tensors by name, in the host's memory and in the model's dtypes."""
        slots = (*self.tracked.averaged, *self.tracked.copied)
        return {slot.name: local(slot.tensor).to("cpu", copy=True) for slot in slots}

    def write_into_model(self, track: int) -> None:
        """Write the average number `track` into the model that trains."""
        self.settle()
        reshard(self.tracked.model)
        for tensor, average in zip(self.live(), (*self.averages[track], *self.copies), strict=True):
            write_into(tensor, average)

    def fill(self, model: nn.Module | None, parts: Sequence[Tensor]) -> nn.Module:
        """Write `parts` into a model, and return it.

        Args:
            model: the model to fill, which gets the frozen parameters too; None: the model that trains.
            parts: tensors in the order of `live`.

        Raises:
            RunError: if the other model has other tensors, or ties other ones.
        """
        ours = self.tracked
        theirs = ours if model is None else Tracked(model)
        there = {place.name: place.tensor for place in theirs.places}
        ours_by_part = zip((*ours.averaged, *ours.copied), parts, strict=True)
        slots = {id(slot.tensor): (slot, part) for slot, part in ours_by_part}
        if model is not None:
            slots |= {id(slot.tensor): (slot, local(slot.tensor)) for slot in ours.frozen}
        # Under each of its names: the other model may have separate tensors for parameters that are tied here.
        filled = [(place.name, *slots[id(place.tensor)]) for place in ours.places if id(place.tensor) in slots]
        into: dict[int, Slot] = {}
        for name, slot, _ in filled:
            target = there.get(name)
            if target is None or target.shape != slot.shape:
                what = "missing" if target is None else f"{list(target.shape)}"
                raise RunError(f"'{name}' is {list(slot.shape)}, but {what} in the model that is to hold it")
            if into.setdefault(id(target), slot) is not slot:
                other = into[id(target)].name
                raise RunError(f"'{name}' is tied to '{other}' in the model that is to hold it, but not here")
        if model is not None:
            names = {place.name for place in ours.places}
            more = [place.name for place in theirs.places if place.name not in names]
            if more:
                raise RunError(f"'{more[0]}' is in the model that is to hold it, but not in the one that trains")
        for name, slot, part in filled:
            target = there[name]
            write_into(local(target), local(cut_like(placed_like(part, slot.tensor), target)))
        return ours.model if model is None else model

    def take_values(self) -> None:
        """Continue with the tensors that have replaced equal ones in the model, on whatever devices they are."""
        if self._offload:
            return
        values, others = self.tracked.values, locals_of(self.tracked.copied)
        if any(value.device != average.device for value, average in zip(values, self.averages[0], strict=True)):
            self.averages = [
                [average.to(value.device) for average, value in zip(averages, values, strict=True)]
                for averages in self.averages
            ]
            self._mover = None
        self.copies = [copy.to(other.device) for copy, other in zip(self.copies, others, strict=True)]
        if self._mover is not None and not self._mover.take(values):
            self._mover = None

    def leave(self, names: set[str]) -> None:
        """Leave these buffers to the model: they are averaged and copied no more."""
        if not names:
            return
        self.forget_shapes()
        averaged = [slot.name not in names for slot in self.tracked.averaged]
        copied = [slot.name not in names for slot in self.tracked.copied]
        self.averages = [list(compress(averages, averaged)) for averages in self.averages]
        self._staged = list(compress(self._staged, averaged))
        self.copies = list(compress(self.copies, copied))
        self.tracked.leave(names)

    def forget_shapes(self) -> None:
        """Forget the prepared movement, since the averages were replaced; the next update prepares a new one."""
        self.settle()
        self._mover = None

    def _mover_for(self, values: Sequence[Tensor]) -> Mover:
        if self._mover is None:
            # Buffers may hold infinities, as masks do, now or later. Parameters that hold some are rare.
            careful = {
                number
                for number, (average, slot) in enumerate(zip(self.averages[0], self.tracked.averaged, strict=True))
                if not slot.is_parameter or not bool(torch.isfinite(average).all())
            }
            self._mover = Mover(values, self.averages, careful)
        return self._mover

    def _copy_others(self, *, wait: bool) -> None:
        for copy, value in zip(self.copies, locals_of(self.tracked.copied), strict=True):
            copy.copy_(value, non_blocking=not wait)


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() <= SMALL and tensor.is_contiguous()
