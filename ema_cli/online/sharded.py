"""Tensors that are cut over several processes (DTensors, as of FSDP2), and this process's part of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from ema_cli.errors import RunError

_WAY_ON = "shard it with torch.distributed.fsdp.fully_shard, or average its checkpoints: ema-cli average"


class _HasTensor(Protocol):
    @property
    def tensor(self) -> Tensor: ...


def reshard(model: nn.Module) -> None:
    """Free the gathered copies that FSDP2 may have left after a forward pass: what is averaged are the shards."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # which takes half a second to import: only who uses it has
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def refuse_flattened(model: nn.Module) -> None:
    """Raise a RunError for what FSDP1 and DeepSpeed's ZeRO-3 have flattened: no tensor in it is one of the model's."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for name, module in model.named_modules():
        if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
            what = f"'{name}'" if name else "the model"
            raise RunError(f"{what} is in FullyShardedDataParallel, which flattens tensors", hint=_WAY_ON)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise RunError(f"'{name}' is one process's part of a flattened tensor, as ZeRO-3 has it", hint=_WAY_ON)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether it is a DTensor, whose class is in a module that takes half a second to import."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor, any other tensor as it is. Shares its memory."""
    part: Tensor = _sharded(tensor).to_local() if is_sharded(tensor) else tensor
    return part


def locals_of(slots: Iterable[_HasTensor]) -> list[Tensor]:
    """Return this process's part of each tensor."""
    return [local(slot.tensor) for slot in slots]


def placed_like(part: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of something as a DTensor that is cut as `like`; as it is where that is none."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = _sharded(like).device_mesh, _sharded(like).placements
    # With the shape of the whole: to ask the other processes would hang where shares are uneven.
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor, whole or sharded in its own way, cut as `like`. All processes must call this."""
    if not is_sharded(like):
        return whole(tensor)
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = _sharded(like).device_mesh, _sharded(like).placements
    if isinstance(tensor, DTensor):
        return tensor.redistribute(mesh, placements)
    return distribute_tensor(tensor.to(like.device), mesh, placements)


def whole(tensor: Tensor) -> Tensor:
    """Return a DTensor put together from all processes, all of which must call this; any other tensor as it is."""
    found: Tensor = _sharded(tensor).full_tensor() if is_sharded(tensor) else tensor
    return found


def _sharded(tensor: Any) -> Any:
    return tensor
