"""Track the tensors of a live model: averaged, copied and frozen ones, and whether they are still the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from ema_cli.dataclass import dataclass
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import RunError
from ema_cli.formats.trainers.prefixes import bare_name
from ema_cli.kinds import check_instance
from ema_cli.online.places import Place, find_places, holders_of
from ema_cli.online.sharded import is_sharded, locals_of, refuse_flattened, reshard

# dtype of a tensor -> dtype of its average: at least float32, so that small steps are not rounded away.
AVERAGED_IN = {
    getattr(torch, name): torch.float32 if dtype.is_narrow else getattr(torch, name)
    for name, dtype in TORCH_DTYPES.items()
    if dtype.averaged and hasattr(torch, name)  # of this torch
} | {torch.complex32: torch.complex64}  # in no file format
_HINT = "begin a new average, or keep the model as it was"
_SHOWN = 4  # names in an error


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter or buffer; a tied one has one slot for all its names.

    `dtype` and `shape` (of the whole tensor, if it is sharded) are from the time when the average began. `is_saved` is
    false for a buffer that `state_dict` leaves out, which a module may make anew in another shape: a cache.
    """

    name: str
    tensor: Tensor
    dtype: torch.dtype
    shape: torch.Size
    is_parameter: bool
    is_saved: bool = True

    @property
    def is_averaged(self) -> bool:
        """Return whether it is averaged: a buffer or trained parameter of floating or complex numbers."""
        return self.dtype in AVERAGED_IN and (not self.is_parameter or self.tensor.requires_grad)


class Tracked:
    """The tensors of a model, without the wrappers of DDP, FSDP and torch.compile.

    Attributes:
        model: the bare model.
        averaged: trained parameters, and all buffers of floating or complex numbers.
        copied: other buffers, such as counters.
        left: names of buffers that were averaged or copied until the module made them anew; they are the model's own.
        frozen: all other parameters.
        places: the places of all these tensors, under each of their names.

    Raises:
        RunError: for a lazy module that has not seen an input, for flattened models, and for tensors without a mean.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.averaged: list[Slot] = []
        self.copied: list[Slot] = []
        self.frozen: list[Slot] = []
        self.left: set[str] = set()
        refuse_flattened(self.model)
        reshard(self.model)
        self.places = list(find_places(self.model))
        self._modules = list(self.model.modules())
        holders = [holder for module in self._modules for holder in holders_of(module)]
        self._holders, self._empty = (
            [holder for holder in holders if holder],
            [holder for holder in holders if not holder],
        )
        self._contents = self._find_contents()
        firsts: dict[int, Place] = {}
        for place in self.places:
            firsts.setdefault(id(place.tensor), place)
        for place in firsts.values():
            slot = _make_slot(place)
            if slot.is_averaged:
                self.averaged.append(slot)
            else:
                (self.frozen if slot.is_parameter else self.copied).append(slot)
        self._record_layout()

    def _record_layout(self) -> None:
        """Record the memory and shapes of the tensors, for `is_current` to compare."""
        slots = (*self.averaged, *self.copied)
        self._sharded = [slot for slot in slots if is_sharded(slot.tensor)]
        self._whole = [slot.tensor for slot in slots if not is_sharded(slot.tensor)]
        self._pointers = list(map(Tensor.data_ptr, self._whole))
        self._counts = list(map(Tensor.numel, self._whole))
        self._deep = [tensor for tensor in self._whole if tensor.dim() > 1]
        self._strides = list(map(Tensor.stride, self._deep))
        self._values = locals_of(self.averaged)

    @property
    def is_sharded(self) -> bool:
        """Return whether some tensors are cut over several processes."""
        return bool(self._sharded)

    @property
    def values(self) -> list[Tensor]:
        """Return this process's part of the averaged tensors, with their present values."""
        return locals_of(self.averaged) if self._sharded else self._values

    @property
    def is_current(self) -> bool:
        """Return whether the model still consists of these very tensors. Quick, as every update calls it."""
        if any(self._empty) or self._find_contents() != self._contents:
            return False
        # A cast or resized module may keep its parameter object and change the memory in it.
        if list(map(Tensor.data_ptr, self._whole)) != self._pointers:
            return False
        # `p.data = p.data[:2]`, `p.data = p.data.t()`, `buffer.resize_(3)` keep the address of the memory.
        if list(map(Tensor.numel, self._whole)) != self._counts:
            return False
        if list(map(Tensor.stride, self._deep)) != self._strides:
            return False
        if any(slot.tensor.dtype is not slot.dtype or slot.tensor.shape != slot.shape for slot in self._sharded):
            return False
        return not any(slot.tensor.requires_grad for slot in self.frozen)

    def _find_contents(self) -> list[int]:
        """Return the ids of all objects in the modules, which nothing else can get while they are kept here."""
        return list(map(id, chain.from_iterable(map(dict.values, self._holders))))

    def check_same(self, newer: Tracked) -> set[str]:
        """Check that the model has the same tensors to average as before. A newly frozen parameter is still averaged.

        Return the names of the buffers that are not saved with the model, and that it has made anew in another shape or
        type, or has no more: nothing can be averaged with those.

        Raises:
            RunError: naming the tensors that are gone, changed or new.
        """
        there = {slot.name: slot for slot in (*newer.averaged, *newer.copied, *newer.frozen)}
        known = {slot.name: slot for slot in (*self.averaged, *self.copied)}
        left = {
            name
            for name, slot in known.items()
            if not slot.is_saved
            and (name not in there or (there[name].dtype, there[name].shape) != (slot.dtype, slot.shape))
        }
        gone = [name for name in known if name not in there and name not in left]
        if gone:
            raise RunError(_change_text(gone, "is gone", "are gone"), hint=_HINT)
        for name, slot in known.items():
            if name in left:
                continue
            now = there[name]
            if (now.dtype, now.shape) != (slot.dtype, slot.shape):
                raise RunError(
                    f"'{name}' is {now.dtype} {list(now.shape)}, but was {slot.dtype} {list(slot.shape)} when the "
                    "average began",
                    hint=_HINT,
                )
        added = [slot.name for slot in (*newer.averaged, *newer.copied) if slot.name not in known and slot.is_saved]
        if added:
            raise RunError(
                _change_text(added, "is new, or trained only now", "are new, or trained only now"), hint=_HINT
            )
        return left

    def unsaved_names(self) -> set[str]:
        """Return the names of the buffers that the model's `state_dict` leaves out, also of those not made yet."""
        return {
            bare_name(f"{prefix}.{key}" if prefix else key)
            for prefix, module in self.model.named_modules()
            for key in module._non_persistent_buffers_set
        }

    def leave(self, names: set[str]) -> None:
        """Leave these buffers to the model from now on."""
        self.averaged = [slot for slot in self.averaged if slot.name not in names]
        self.copied = [slot for slot in self.copied if slot.name not in names]
        self.left |= names
        self._record_layout()

    def adopt(self, newer: Tracked) -> None:
        """Continue with the tensors of `newer`: equal ones, as other objects."""
        there = {slot.name: slot for slot in (*newer.averaged, *newer.frozen, *newer.copied)}
        self.averaged = [there[slot.name] for slot in self.averaged]
        self.copied = [there[slot.name] for slot in self.copied]
        names = {slot.name for slot in self.averaged}
        self.frozen = [slot for slot in newer.frozen if slot.name not in names]
        self.places, self._modules = newer.places, newer._modules
        self._holders, self._empty, self._contents = newer._holders, newer._empty, newer._contents
        self._record_layout()

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the model's `state_dict` under bare names; a tied tensor under each of its names."""
        reshard(self.model)
        for name, value in self.model.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                yield bare_name(name), value


def _make_slot(place: Place) -> Slot:
    tensor, is_parameter = place.tensor, isinstance(place.tensor, nn.Parameter)
    if nn.parameter.is_lazy(tensor):
        raise RunError(
            f"'{place.name}' has no shape yet: its module is lazy",
            hint="run the model on one batch before its first update",
        )
    slot = Slot(place.name, tensor, tensor.dtype, tensor.shape, is_parameter, place.is_saved)
    if is_parameter and not tensor.requires_grad:
        return slot  # frozen: not averaged, so it needs no mean
    if tensor.is_meta:
        raise RunError(
            f"'{place.name}' has no data yet: it is on the device meta",
            hint="give the model its weights first, as model.to_empty(device=...) and load_state_dict do",
        )
    if tensor.is_floating_point() and tensor.dtype not in AVERAGED_IN:
        raise RunError(f"'{place.name}' is {tensor.dtype}, which has no mean without its scale")
    if tensor.layout is not torch.strided:
        raise RunError(f"'{place.name}' is sparse ({tensor.layout}), which cannot be averaged in place")
    return slot


def _change_text(names: list[str], one: str, several: str) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown}{more} {one if len(names) == 1 else several} since the average began"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel and torch.compile.

    Raises:
        UsageError: for what is no model.
    """
    check_instance(model, nn.Module, "a model: a torch.nn.Module")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
