"""Where the averages of a live model lie, and when they are moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ema_cli.online.mover import Mover
from ema_cli.online.tracked import AVERAGED_IN, Tracked, local, locals_of

Offload = Literal["cpu"] | None


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
        values = locals_of(tracked.averaged)
        self.averages = [[self.like(value, AVERAGED_IN[value.dtype]) for value in values] for _ in range(count)]
        self.copies = [self.like(local(slot.tensor)) for slot in tracked.copied]
        self._staged = [self.like(value) for value in values] if offload else []
        self._due: Sequence[float] | None = None  # shares of an update whose values are staged
        self._copied: torch.cuda.Event | None = None
        self._mover: Mover | None = None
        self.copy()

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return memory for a tensor of that shape, where the averages are; `dtype` None is the tensor's own."""
        if self._offload is None:
            return torch.empty_like(tensor, dtype=dtype, requires_grad=False)
        return torch.empty_like(tensor, dtype=dtype, device=self._offload, pin_memory=self._pinned, requires_grad=False)

    def copy(self) -> None:
        """Make all averages equal to the model."""
        self._due = None
        values = locals_of(self.tracked.averaged)
        for averages in self.averages:
            if averages:
                torch._foreach_copy_(averages, values)
        self._copy_others()

    def move(self, shares: Sequence[float]) -> None:
        """Move each average toward the model by its share in [0, 1]."""
        self.settle()
        values = locals_of(self.tracked.averaged)
        self._follow(values)
        if not self._offload:
            self._moved_by(values).move(values, shares)
        else:
            for staged, value in zip(self._staged, values, strict=True):
                staged.copy_(value, non_blocking=True)
            if self._pinned:
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record()
            self._due = shares
        self._copy_others()

    def settle(self) -> None:
        """Finish the update that is under way, if there is one."""
        if self._due is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        shares, self._due = self._due, None
        self._moved_by(self._staged).move(self._staged, shares)

    def _follow(self, values: Sequence[Tensor]) -> None:
        """Go where the model went since the average began, as from the host to a GPU."""
        if self._offload or not values or values[0].device == self.averages[0][0].device:
            return
        self.averages = [
            [average.to(value.device) for average, value in zip(averages, values, strict=True)]
            for averages in self.averages
        ]
        there = locals_of(self.tracked.copied)
        self.copies = [copy.to(value.device) for copy, value in zip(self.copies, there, strict=True)]
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

    def _copy_others(self) -> None:
        if self.copies:
            torch._foreach_copy_(self.copies, locals_of(self.tracked.copied))
