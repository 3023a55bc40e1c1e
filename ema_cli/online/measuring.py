"""How large the averages are, and how far the model is from them: by that the rounding of what is stored is judged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ema_cli.runs.stored_file import Sizes

if TYPE_CHECKING:
    from ema_cli.online.averages import Averages


def measure(averages: Averages) -> list[Sizes]:
    """Return the sizes of each average. Of a model that is cut over several processes, every process must call it."""
    store = averages.settled_store()
    live = store.live() if averages.training is None else averages.training
    squares = []
    for parts in store.averages:
        pairs = [(part, value.to(part.device, part.dtype)) for part, value in zip(parts, live, strict=False)]
        squares += [_sum(part for part, _ in pairs), _sum(value - part for part, value in pairs)]
    if store.tracked.is_sharded:
        from torch import distributed

        everywhere: list[list[float] | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everywhere, squares)
        squares = [sum(one) for one in zip(*filter(None, everywhere), strict=True)]
    roots = [math.sqrt(square) for square in squares]
    return [Sizes(norm, spread) for norm, spread in zip(roots[::2], roots[1::2], strict=True)]


def _sum(tensors: Iterable[Tensor]) -> float:
    """Return the sum of squares; infinities, as masks hold, and NaN do not count."""
    norms = [torch.linalg.vector_norm(torch.nan_to_num(tensor, 0.0, 0.0, 0.0)) for tensor in tensors if tensor.numel()]
    return sum(float(norm) ** 2 for norm in norms)
