"""Where a live model holds its parameters and buffers, and how values get back there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ema_cli.dataclass import dataclass
from ema_cli.formats.trainers.prefixes import bare_name


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a parameter or buffer in a module: `holder[key]`. A tied tensor has several places."""

    name: str
    holder: dict[str, Any]
    key: str
    tensor: Tensor
    is_saved: bool = True


def find_places(model: nn.Module) -> Iterator[Place]:
    for prefix, module in model.named_modules():
        for holder in holders_of(module)[:2]:
            for key, tensor in holder.items():
                if tensor is not None:
                    name = bare_name(f"{prefix}.{key}" if prefix else key)
                    yield Place(name, holder, key, tensor, key not in module._non_persistent_buffers_set)


def holders_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the dictionaries of a module that hold its parameters, buffers and modules."""
    return module._parameters, module._buffers, module._modules


def put_back(places: Sequence[Place]) -> None:
    """Put the original tensors back into a model, wherever others have replaced them."""
    for place in places:
        held = place.holder.get(place.key)
        if held is not place.tensor:
            if not place.is_saved and isinstance(held, Tensor) and held.shape != place.tensor.shape:
                continue  # a cache that has grown: its module counts on it
            if isinstance(held, Tensor) and held.device != place.tensor.device:
                place.tensor.data = held.data  # the model was moved meanwhile, which creates new buffers
            place.holder[place.key] = place.tensor


def write_into(tensor: Tensor, value: Tensor) -> None:
    """Copy `value` into a tensor, also into one that shows the same memory several times (`expand`)."""
    for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor, value = tensor.narrow(dimension, 0, 1), value.narrow(dimension, 0, 1)
    if tensor.is_inference():  # what was made in that mode changes in that mode alone
        with torch.inference_mode():
            tensor.copy_(value)
    else:
        tensor.copy_(value)


def write_back(tensor: Tensor, before: Tensor) -> None:
    """Restore a tensor of the model to `before`, also if it was cast meanwhile."""
    if tensor.dtype is before.dtype and tensor.shape == before.shape:
        write_into(tensor, before)
    else:
        tensor.data = before.to(tensor.device, copy=True)
