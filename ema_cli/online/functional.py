"""One step of the law for those who keep the averaged model themselves."""

from __future__ import annotations

import torch
from torch import nn

from ema_cli.errors import RunError, UsageError
from ema_cli.online.mover import Mover
from ema_cli.online.tracked import Tracked, local


@torch.no_grad()
def compute_ema(model: nn.Module, ema_model: nn.Module, smoothing: float = 0.99) -> None:
    """Move `ema_model` toward `model`, in place: ema = smoothing * ema + (1 - smoothing) * model.

    As Composer's function of this name, for all parameters and buffers that the two share; but integers are copied,
    and the sum is rounded once. An `ema_model` in float32 keeps the small steps that a bfloat16 one rounds away.

    Raises:
        UsageError: for a smoothing outside of [0, 1].
        RunError: where a tensor has another shape in the other model.
    """
    if not 0 <= smoothing <= 1:
        raise UsageError(f"smoothing: {smoothing:g} is not in [0, 1]")
    theirs, ours = Tracked(model), Tracked(ema_model)
    live = {slot.name: slot.tensor for slot in (*theirs.averaged, *theirs.frozen, *theirs.copied)}
    pairs = [(slot, live[slot.name]) for slot in (*ours.averaged, *ours.frozen, *ours.copied) if slot.name in live]
    values, averages = [], []
    for slot, value in pairs:
        if slot.tensor.shape != value.shape:
            raise RunError(f"'{slot.name}' is {list(slot.tensor.shape)}, but {list(value.shape)} in the model")
        if slot.tensor.is_floating_point() or slot.tensor.is_complex():
            averages.append(local(slot.tensor))
            values.append(local(value))
        else:
            slot.tensor.copy_(value)
    # Sums are in float32 at least: what is narrower is widened first, and rounded in the end.
    wide = [each.float() if each.dtype in (torch.float16, torch.bfloat16) else each for each in averages]
    careful = {number for number, each in enumerate(wide) if not bool(torch.isfinite(each).all())}
    Mover(values, [wide], careful).move(values, [1 - smoothing])
    for average, moved in zip(averages, wide, strict=True):
        if moved is not average:
            average.copy_(moved)
