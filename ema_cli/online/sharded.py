"""Handle tensors that are cut over several processes (DTensors, as of FSDP2): parts, whole tensors, placement."""

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
    """Free the gathered copies that FSDP2 may have left after a forward pass: the shards are averaged."""
    fsdp = sys.modules.get(
        "torch.distributed.fsdp"
    )  # not imported here, as that takes half a second: a model with FSDP has imported it
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def refuse_flattened(model: nn.Module) -> None:
    """Check that neither FSDP1 nor DeepSpeed's ZeRO-3 has flattened the model, which hides its tensors.

    Raises:
        RunError: naming the first flattened module or parameter.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for name, module in model.named_modules():
        if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
            what = f"'{name}'" if name else "the model"
            raise RunError(f"{what} is in FullyShardedDataParallel, which flattens tensors", hint=_WAY_ON)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise RunError(f"'{name}' is one process's part of a flattened tensor, as ZeRO-3 has it", hint=_WAY_ON)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor; without its class, as importing that takes half a second."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor, which shares its memory; return any other tensor unchanged."""
    part: Tensor = _sharded(tensor).to_local() if is_sharded(tensor) else tensor
    return part


def locals_of(slots: Iterable[_HasTensor]) -> list[Tensor]:
    """Return this process's part of each tensor."""
    return [local(slot.tensor) for slot in slots]


def placed_like(part: Tensor, like: Tensor) -> Tensor:
    """Return this process's `part` as a DTensor cut like `like`; unchanged if `like` is no DTensor."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = _sharded(like).device_mesh, _sharded(like).placements
    # With the shape of the whole tensor: inferring it from all processes would hang if shards are uneven.
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor, whole or sharded in another way, cut like `like`. All processes must call this."""
    if not is_sharded(like):
        return whole(tensor)
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = _sharded(like).device_mesh, _sharded(like).placements
    if isinstance(tensor, DTensor):
        return tensor.redistribute(mesh, placements)
    return distribute_tensor(tensor.to(like.device), mesh, placements)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a DTensor, gathered from all processes, which must all call this; others unchanged."""
    full: Tensor = _sharded(tensor).full_tensor() if is_sharded(tensor) else tensor
    return full


def _sharded(tensor: Any) -> Any:
    return tensor
