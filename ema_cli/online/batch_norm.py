"""The running statistics of BatchNorm layers, computed anew for a model with averaged weights.

An average of running statistics is that of the statistics which the folded checkpoints had, not those which the
averaged weights give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ema_cli.errors import RunError
from ema_cli.online.store import no_gradients


@no_gradients()
def update_bn(model: nn.Module, loader: Iterable[Any], *, device: torch.device | str | None = None) -> None:
    """Compute the running statistics of all BatchNorm layers anew, from the batches of one pass over training data.

    It does what `torch.optim.swa_utils.update_bn` does, and leaves the model in the mode in which it was. If a batch
    fails, or there is none, the model keeps the statistics that it had. A model without BatchNorm is left alone.

    Args:
        model: the model, with averaged weights.
        loader: batches: a tensor; a tuple or list that begins with the model's input; or a mapping of the model's
            arguments.
        device: where the batches go; None for where the model is.

    Raises:
        RunError: where the loader yields no batch.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return
    first = next(chain(model.parameters(), model.buffers()), None)
    place = device if device is not None else (first.device if first is not None else None)
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]
    is_empty = True
    try:
        model.train()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a mean in which all batches count alike
        for batch in loader:
            _call(model, batch, place)
            is_empty = False
        if is_empty:
            raise RunError("the loader yields no batch", hint="give batches of training data")
    except BaseException:
        for layer, buffers in zip(layers, kept, strict=True):
            for name, buffer in buffers.items():
                layer.get_buffer(name).copy_(buffer)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode


def _call(model: nn.Module, batch: Any, device: torch.device | str | None) -> None:
    """Call the model with the input in a batch, or with a mapping of its arguments."""
    if isinstance(batch, Mapping):
        model(**{name: _moved(value, device) for name, value in batch.items()})
        return
    model(_moved(batch[0] if isinstance(batch, list | tuple) else batch, device))


def _moved(value: Any, device: torch.device | str | None) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) and device is not None else value
