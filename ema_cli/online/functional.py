"""One step of the law, for callers who keep the averaged model themselves."""

from __future__ import annotations

import torch
from torch import nn

from ema_cli.errors import RunError, UsageError
from ema_cli.kinds import as_number
from ema_cli.online.mover import Mover
from ema_cli.online.places import write_into
from ema_cli.online.sharded import local
from ema_cli.online.store import no_gradients
from ema_cli.online.tracked import AVERAGED_IN, Tracked


@no_gradients()
def compute_ema(model: nn.Module, ema_model: nn.Module, smoothing: float = 0.99) -> None:
    """Move `ema_model` toward `model`, in place: ema = smoothing * ema + (1 - smoothing) * model.

    It works like Composer's function of this name, on all parameters and buffers that both models have; but integers
    are copied, and the sum is rounded once. An `ema_model` in float32 keeps small steps that bfloat16 rounds away.

    Raises:
        UsageError: for a smoothing outside of [0, 1], and what is no model.
        RunError: if a tensor has another shape in the other model.
    """
    smoothing = as_number(smoothing, "smoothing")
    if not 0 <= smoothing <= 1:
        raise UsageError(f"smoothing: {smoothing:g} is not in [0, 1]")
    live = {place.name: place.tensor for place in Tracked(model).places}
    ours = Tracked(ema_model)
    pairs = [(slot, live[slot.name]) for slot in (*ours.averaged, *ours.frozen, *ours.copied) if slot.name in live]
    for slot, value in pairs:
        if slot.shape != value.shape:
            raise RunError(f"'{slot.name}' is {list(slot.shape)}, but {list(value.shape)} in the model")
    values, averages = [], []
    for slot, value in pairs:
        if slot.dtype in AVERAGED_IN:
            averages.append(local(slot.tensor))
            values.append(local(value))
        else:
            write_into(local(slot.tensor), local(value))
    # Sums are in float32 at least: narrower averages are widened first, and rounded at the end. Averages that show the
    # same memory several times (`expand`) are copied in the same way, as a sum in place is impossible.
    in_place = [average.dtype is AVERAGED_IN[average.dtype] and 0 not in average.stride() for average in averages]
    wide = [
        average if stays else average.clone().to(AVERAGED_IN[average.dtype])
        for average, stays in zip(averages, in_place, strict=True)
    ]
    careful = {number for number, average in enumerate(wide) if not bool(torch.isfinite(average).all())}
    Mover(values, [wide], careful).move([1 - smoothing])
    for average, moved in zip(averages, wide, strict=True):
        if moved is not average:
            write_into(average, moved)
