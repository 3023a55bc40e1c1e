"""Where the averages of a live model lie, when they are moved, and how they get into a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ema_cli.errors import RunError
from ema_cli.online.mover import SMALL, Mover
from ema_cli.online.sharded import cut_like, local, locals_of, placed_like, reshard
from ema_cli.online.tracked import AVERAGED_IN, Slot, Tracked, write_into

Offload = Literal["cpu"] | None


@contextmanager
def no_gradients() -> Iterator[None]:
    """Work on tensors as under `no_grad`, also inside `inference_mode`, whose tensors no update could write to."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Store:
    """The tensors of `count` averages of a model, on its device or, with `offload`, on the host.

    `averages` holds for each average one tensor for each of `tracked.averaged`, in its type of `AVERAGED_IN`; of
    sharded tensors, this rank's part. `copies` are those of `tracked.copied` at the last event.

    With `offload`, an update only begins to copy the model to the host; the averages are moved at the next one, or
    when they are needed (`settle`), while the device goes on.
    """

    def __init__(self, tracked: Tracked, count: int, offload: Offload) -> None:
        self.tracked = tracked
        self._offload = offload
        self._pinned = offload is not None and torch.cuda.is_available()
        values = tracked.values
        self.averages = [self._allocate(values) for _ in range(count)]
        self.copies = [self.like(local(slot.tensor)) for slot in tracked.copied]
        self._staged = [self.like(value) for value in values] if offload else []
        self._due: Sequence[float] | None = None  # shares of an update whose values are staged
        self._copied: list[torch.cuda.Event] = []  # one for each device that the model is on
        self._mover: Mover | None = None
        self.copy()

    def __getstate__(self) -> dict[str, Any]:
        # A pickle keeps no views of one memory together: the mover would go on with tensors of its own.
        self.settle()
        return {**self.__dict__, "_mover": None}

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return memory for a tensor of that shape, where the averages are; `dtype` None is the tensor's own."""
        if self._offload is None:
            return torch.empty_like(tensor, dtype=dtype, requires_grad=False)
        return torch.empty_like(tensor, dtype=dtype, device=self._offload, pin_memory=self._pinned, requires_grad=False)

    def _allocate(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return memory for one average. Small tensors lie side by side, so that all of them can be moved as one."""
        sizes: dict[tuple[torch.device, torch.dtype], int] = {}
        for value in filter(_is_small, values):
            sizes[value.device, value.dtype] = sizes.get((value.device, value.dtype), 0) + value.numel()
        memory = {
            (device, narrow): self.like(torch.empty(size, dtype=narrow, device=device), AVERAGED_IN[narrow])
            for (device, narrow), size in sizes.items()
        }
        taken = dict.fromkeys(memory, 0)
        averages = []
        for value in values:
            if _is_small(value):
                key = value.device, value.dtype
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
                self.take_values()  # their parts may lie elsewhere each time
            self._moved_by(values).move(shares)
            self._copy_others(wait=True)
            return
        for staged, value in zip(self._staged, values, strict=True):
            staged.copy_(value, non_blocking=self._pinned)
        self._copy_others(wait=not self._pinned)
        devices = {tensor.device for tensor in self.live() if tensor.is_cuda}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]
        self._due = shares

    def settle(self) -> None:
        """Finish the update that is under way, if there is one."""
        if self._due is None:
            return
        for event in self._copied:
            event.synchronize()
        shares, self._due = self._due, None
        self._moved_by(self._staged).move(shares)

    def live(self) -> list[Tensor]:
        """Return this process's part of what is averaged and copied, as the model has it now."""
        return locals_of((*self.tracked.averaged, *self.tracked.copied))

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of these by name, in the host's memory and in the model's own types."""
        slots = (*self.tracked.averaged, *self.tracked.copied)
        return {slot.name: local(slot.tensor).to("cpu", copy=True) for slot in slots}

    def write_into_model(self, track: int) -> None:
        """Put an average into the model that is averaged."""
        self.settle()
        reshard(self.tracked.model)
        for tensor, average in zip(self.live(), (*self.averages[track], *self.copies), strict=True):
            write_into(tensor, average)

    def fill(self, model: nn.Module | None, parts: Sequence[Tensor]) -> nn.Module:
        """Put `parts`, which are as `live`, into `model` (None: the one that is averaged), and return that.

        Another model gets the frozen parameters, too.
        """
        ours = self.tracked
        theirs = ours if model is None else Tracked(model)
        there = {place.name: place.tensor for place in theirs.places}
        ours_by_part = zip((*ours.averaged, *ours.copied), parts, strict=True)
        slots = {id(slot.tensor): (slot, part) for slot, part in ours_by_part}
        if model is not None:
            slots |= {id(slot.tensor): (slot, local(slot.tensor)) for slot in ours.frozen}
        # Under each of its names: the other model may keep apart what is tied here.
        filled = [(place.name, *slots[id(place.tensor)]) for place in ours.places if id(place.tensor) in slots]
        into: dict[int, Slot] = {}
        for name, slot, _ in filled:
            found = there.get(name)
            if found is None or found.shape != slot.shape:
                what = "missing" if found is None else f"{list(found.shape)}"
                raise RunError(f"'{name}' is {list(slot.shape)}, but {what} in the model that is to hold it")
            if into.setdefault(id(found), slot) is not slot:
                other = into[id(found)].name
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
        """Go on with the tensors that the model has now in place of equal ones, on whatever devices they are."""
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

    def forget_shapes(self) -> None:
        """Look at the tensors anew at the next update: others have been put in their place."""
        self.settle()
        self._mover = None

    def _moved_by(self, values: Sequence[Tensor]) -> Mover:
        if self._mover is None:
            # Masks hold infinities, and no others need that looked at in every update.
            finite = [bool(torch.isfinite(average).all()) for average in self.averages[0]]
            careful = {number for number, each in enumerate(finite) if not each}
            self._mover = Mover(values, self.averages, careful)
        return self._mover

    def _copy_others(self, *, wait: bool) -> None:
        for copy, value in zip(self.copies, locals_of(self.tracked.copied), strict=True):
            copy.copy_(value, non_blocking=not wait)


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() <= SMALL and tensor.is_contiguous()
