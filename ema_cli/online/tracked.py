"""The tensors of a live model: which are averaged, which are copied, and whether they are still the same."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ema_cli.errors import RunError
from ema_cli.formats.prefixes import bare_name

# The type in which a tensor is averaged: at least float32, so that small steps are not rounded away.
AVERAGED_IN = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex32: torch.complex64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
_SHOWN = 4  # names in an error


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter or buffer, once however many names it has, and where its module keeps it."""

    name: str
    tensor: Tensor
    holder: dict[str, Any]
    key: str
    is_parameter: bool

    @property
    def is_averaged(self) -> bool:
        """Return whether it is averaged: a buffer, or a parameter that is trained, of numbers that have a mean."""
        return self.tensor.dtype in AVERAGED_IN and (not self.is_parameter or self.tensor.requires_grad)

    @property
    def spec(self) -> tuple[torch.Size, torch.dtype]:
        """Return shape (of the whole tensor, where it is sharded) and type."""
        return self.tensor.shape, self.tensor.dtype


class Tracked:
    """The tensors of `model`, without what DDP, FSDP and torch.compile put around it.

    `averaged` are trained parameters and all buffers of floating or complex numbers; `copied` are other buffers, as
    counters; `frozen` are all other parameters.

    Raises:
        RunError: for a lazy module that has not seen an input, and for a tensor of 8-bit floats.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.averaged: list[Slot] = []
        self.copied: list[Slot] = []
        self.frozen: list[Slot] = []
        self._sizes: list[tuple[nn.Module, int, int, int]] = []
        reshard(self.model)
        for slot in self._find():
            if nn.parameter.is_lazy(slot.tensor):
                raise RunError(
                    f"'{slot.name}' has no shape yet: its module is lazy",
                    hint="run the model on one batch before its first update",
                )
            if slot.is_averaged:
                self.averaged.append(slot)
            elif slot.tensor.is_floating_point() and slot.tensor.dtype not in AVERAGED_IN:
                raise RunError(f"'{slot.name}' is {slot.tensor.dtype}, which has no mean without its scale")
            else:
                (self.frozen if slot.is_parameter else self.copied).append(slot)

    def _find(self) -> Iterator[Slot]:
        """Yield each tensor once, under the first of its names."""
        seen: set[int] = set()
        for prefix, module in self.model.named_modules():
            self._sizes.append((module, len(module._parameters), len(module._buffers), len(module._modules)))
            for holder, is_parameter in ((module._parameters, True), (module._buffers, False)):
                for key, tensor in holder.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        name = bare_name(f"{prefix}.{key}" if prefix else key)
                        yield Slot(name, tensor, holder, key, is_parameter)

    @property
    def is_current(self) -> bool:
        """Return whether the model still consists of these very tensors; quick, as it is asked at every update."""
        for module, parameters, buffers, modules in self._sizes:
            if (len(module._parameters), len(module._buffers), len(module._modules)) != (parameters, buffers, modules):
                return False
        for slots in (self.averaged, self.copied):
            for slot in slots:
                if slot.holder.get(slot.key) is not slot.tensor:
                    return False
        return not any(slot.tensor.requires_grad for slot in self.frozen)

    def check_same(self, newer: Tracked) -> None:
        """Raise a RunError if the model has come to have other tensors to average, naming them.

        A parameter that is frozen now goes on to be averaged.
        """
        for before, after in ((self.averaged, [*newer.averaged, *newer.frozen]), (self.copied, newer.copied)):
            there = {slot.name: slot for slot in after}
            for slot in before:
                if slot.name not in there:
                    raise RunError(_changed([slot.name], "is gone", "are gone"), hint=_HINT)
                if slot.spec != there[slot.name].spec:
                    (old, old_dtype), (new, new_dtype) = slot.spec, there[slot.name].spec
                    raise RunError(
                        f"'{slot.name}' is {new_dtype} {list(new)}, but was {old_dtype} {list(old)} when the average "
                        "began",
                        hint=_HINT,
                    )
        known = {slot.name for slot in (*self.averaged, *self.copied)}
        added = [slot.name for slot in (*newer.averaged, *newer.copied) if slot.name not in known]
        if added:
            raise RunError(_changed(added, "is new, or trained only now", "are new, or trained only now"), hint=_HINT)

    def adopt(self, newer: Tracked) -> None:
        """Go on with the tensors of `newer`, which has the same ones under other identities."""
        there = {slot.name: slot for slot in (*newer.averaged, *newer.frozen, *newer.copied)}
        self.averaged = [there[slot.name] for slot in self.averaged]
        self.copied = [there[slot.name] for slot in self.copied]
        names = {slot.name for slot in self.averaged}
        self.frozen = [slot for slot in newer.frozen if slot.name not in names]
        self._sizes = newer._sizes

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the model's `state_dict` holds, under bare names: tied tensors under each of theirs."""
        reshard(self.model)
        for name, value in self.model.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                yield bare_name(name), value


_HINT = "begin a new average, or keep the model as it was"


def _changed(names: list[str], one: str, several: str) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown}{more} {one if len(names) == 1 else several} since the average began"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def reshard(model: nn.Module) -> None:
    """Free the gathered copies that FSDP2 may have left after a forward pass: what is averaged are the shards."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # which takes half a second to import: only who uses it has
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, any other tensor as it is. Shares its memory."""
    part: Tensor = _sharded(tensor).to_local() if _is_sharded(tensor) else tensor
    return part


def locals_of(slots: Iterable[Slot]) -> list[Tensor]:
    """Return this rank's part of each tensor."""
    return [local(slot.tensor) for slot in slots]


def placed_like(part: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of something as a DTensor that is cut as `like`; as it is where that is no DTensor."""
    if not _is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = _sharded(like).device_mesh, _sharded(like).placements
    # With the shape of the whole: to ask the other processes would hang where shares are uneven.
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor, whole or sharded in its own way, cut as `like`."""
    if not _is_sharded(like):
        return whole(tensor)
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = _sharded(like).device_mesh, _sharded(like).placements
    if isinstance(tensor, DTensor):
        return tensor.redistribute(mesh, placements)
    return distribute_tensor(tensor.to(like.device), mesh, placements)


def whole(tensor: Tensor) -> Tensor:
    """Return a DTensor put together from all processes, all of which must call this; any other tensor as it is."""
    found: Tensor = _sharded(tensor).full_tensor() if _is_sharded(tensor) else tensor
    return found


def _is_sharded(tensor: Tensor) -> bool:
    # The class is in a module that takes half a second to import.
    return hasattr(tensor, "to_local")


def _sharded(tensor: Any) -> Any:
    return tensor
