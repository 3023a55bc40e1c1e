"""What a file of torch's holds, as its pickle describes it: objects, and tensors that lie in storages. No torch."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from operator import is_
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import MAX_TENSORS, TensorSpec, check_tensor_name
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import TORCH_DTYPES, DType
from ema_cli.errors import CheckpointError, CutBetweenRanks
from ema_cli.formats.before import Before
from ema_cli.formats.pickles.distributed import is_cut, whole_of
from ema_cli.formats.pickles.values import Inert, Refused, TensorRef
from ema_cli.formats.spec_table import SpecTable
from ema_cli.formats.torch_save.archive import Span
from ema_cli.formats.torch_save.tensors import IN_ORDER, TorchTensors, View, is_contiguous
from ema_cli.storage.source import ByteSource

_MAX_EXPANDED_BYTES = 1 << 30


_TENSOR_BYTES = 400  # that each takes where tensors are kept


_FLOATS = {"<f4": struct.Struct("<f"), "<f8": struct.Struct("<d")}


def locate_in(spans: Mapping[str, Span]) -> Callable[[Iterable[str]], Mapping[str, Span]]:
    """Return what `TorchFile.locate` is where the places of all storages are known."""
    return lambda keys: {key: spans[key] for key in keys if key in spans}


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The content of a file, or of a record, that `torch.save` wrote, in either of its containers.

    Attributes:
        source: the bytes.
        root: the object that was saved, with a `TensorRef` for each tensor.
        locate: returns where in `source` the storages with some keys lie; those that are missing are left out.
        mark: the content of ema-cli's mark in an average that it made, None in other files.
        before: what the files of the run were that were read before.
    """

    source: ByteSource
    root: Any
    locate: Callable[[Iterable[str]], Mapping[str, Span]]
    mark: Mapping[str, object] | None = None
    before: Before | None = None

    def tensors(self, refs: Mapping[str, object]) -> TorchTensors:
        """Return the tensors that `refs` (name -> `TensorRef`) describe.

        Raises:
            CheckpointError: for one that is not a tensor, or does not lie in its storage.
        """
        before = self.before
        last = before.get(_Last, _likeness(refs)) if before is not None else None
        last = last.of(self, refs) if last is not None else None
        if before is not None and last is not None:
            self._keep(before, last)
            return last.tensors
        path = self.source.path
        if any(map(is_cut, refs.values())):
            refs = {name: whole_of(ref) or ref if is_cut(ref) else ref for name, ref in refs.items()}
        if len(refs) > MAX_TENSORS:
            raise CheckpointError(f"holds {len(refs)} tensors; at most {MAX_TENSORS} are read", subject=path)
        specs: dict[str, TensorSpec] = {}
        table = SpecTable()
        offsets = array("q")
        kept: list[TensorRef] = []
        views: dict[str, View] = {}
        spans = self.locate([ref.storage.key for ref in refs.values() if isinstance(ref, TensorRef)])
        expanded = 0
        for name, ref in refs.items():
            check_tensor_name(name, path)
            if not isinstance(ref, TensorRef):
                raise _refusal(name, ref, path)
            dtype, count = self._dtype(name, ref), prod(ref.shape)
            offset, stored = self._offset(name, ref, dtype, count, spans)
            if count * dtype.itemsize > stored:
                expanded += count * dtype.itemsize
            if expanded > _MAX_EXPANDED_BYTES:
                raise CheckpointError(
                    f"'{name}' is expanded, as others are, to gigabytes from a few bytes", subject=path
                )
            name = sys.intern(name)  # one copy of each name, however many checkpoints have it
            view = View.of(ref)
            specs[name] = table.spec(dtype, self._shape(name, ref, dtype, view))
            offsets.append(offset)
            kept.append(ref)
            if view != IN_ORDER:
                views[name] = view
        numbers = {name: number for number, name in enumerate(specs)}
        tensors = TorchTensors(specs, numbers, offsets, views, self.source)
        if before is not None:
            keys = tuple([ref.storage.key for ref in kept])
            begins = [offset - spans[key][0] for key, offset in zip(keys, offsets, strict=True)]
            self._keep(before, _Last(refs, keys, spans, begins, tensors))
        return tensors

    def _keep(self, before: Before, last: _Last) -> None:
        before.keep(_likeness(last.refs), last, len(last.refs) * _TENSOR_BYTES)

    def scalar(self, name: str, ref: TensorRef) -> int | float | None:
        """Return the value of a tensor of one number (a clock), None for any other tensor."""
        dtype = TORCH_DTYPES.get(ref.dtype)
        if dtype is None or prod(ref.shape) != 1:
            return None
        number = _FLOATS.get(dtype.numpy or "") if dtype.kind == "float" else None
        if number is None and (dtype.kind != "integer" or dtype.name == "BOOL"):
            return None
        stored = self.source.read(self._offset(name, ref, dtype, 1)[0], dtype.itemsize)
        if number is not None:
            return float(number.unpack(stored)[0])
        return int.from_bytes(stored, "little", signed=dtype.name[0] == "I")

    def beginning(self, name: str, ref: TensorRef, size: int) -> bytes:
        """Return the first bytes of a tensor, at most `size`; fewer of one that does not lie in order."""
        dtype = self._dtype(name, ref)
        count = prod(ref.shape) if is_contiguous(ref.shape, ref.strides) else 1
        offset, _ = self._offset(name, ref, dtype, count)
        return self.source.read(offset, min(size, count * dtype.itemsize))

    def _dtype(self, name: str, ref: TensorRef) -> DType:
        """Return the element type of a tensor, whose lazy bits are checked to be those that it can have."""
        dtype = TORCH_DTYPES.get(ref.dtype)
        if dtype is None:
            raise CheckpointError(
                f"'{name}' has dtype {ref.dtype}, which cannot be averaged",
                subject=self.source.path,
                hint="average the run's full-precision checkpoints and convert the result",
            )
        if (ref.negative and not dtype.averaged) or (ref.conjugate and dtype.kind != "complex"):
            raise CheckpointError(
                f"'{name}' is {dtype.name} with a bit that only others have", subject=self.source.path
            )
        return dtype

    def _shape(self, name: str, ref: TensorRef, dtype: DType, view: View) -> tuple[int, ...]:
        """Return the shape in elements, of which torch may count several as one."""
        if dtype.torch_group == 1:
            return ref.shape
        if view.strides is not None or not ref.shape:
            raise CheckpointError(f"'{name}' is {dtype.name} that does not lie in order", subject=self.source.path)
        return (*ref.shape[:-1], dtype.torch_group * ref.shape[-1])

    def _offset(
        self, name: str, ref: TensorRef, dtype: DType, count: int, spans: Mapping[str, Span] | None = None
    ) -> Span:
        """Return the byte of the first element and the size of the storage, in which all `count` elements must lie."""
        path, itemsize = self.source.path, dtype.itemsize
        span = (self.locate([ref.storage.key]) if spans is None else spans).get(ref.storage.key)
        if span is None:
            raise CheckpointError(f"'{name}' has its bytes in a storage that is missing", subject=path)
        start, stored = span
        size = ref.storage.count * (itemsize if ref.storage.dtype else 1)
        if stored != size:
            raise CheckpointError(f"'{name}' has a storage of {size} bytes, but {stored} are in the file", subject=path)
        last = ref.offset
        for length, stride in zip(ref.shape, ref.strides, strict=True):
            last += (length - 1) * stride
        if count and (last + 1) * itemsize > stored:
            raise CheckpointError(f"'{name}' reaches past the end of its storage", subject=path)
        if count * itemsize > max(stored, _MAX_EXPANDED_BYTES):
            raise CheckpointError(f"'{name}' is expanded to {count} elements from a few bytes", subject=path)
        return start + (ref.offset * itemsize if count else 0), stored


@dataclass(frozen=True, slots=True)
class _Last:
    """The tensors of a file that was read before. Those of the next one of its run are mostly described alike.

    Attributes:
        refs: their descriptions by name. Pickles that are equal, or batches in them, have the very same descriptions.
        keys: the key of the storage of each.
        spans: where these storages lie.
        begins: the byte of its storage at which each tensor begins.
        tensors: what was made of them.
    """

    refs: Mapping[str, object]
    keys: tuple[str, ...]
    spans: Mapping[str, Span]
    begins: Sequence[int]
    tensors: TorchTensors

    def of(self, file: TorchFile, refs: Mapping[str, object]) -> _Last | None:
        """Return the same of another file with the same descriptions and sizes; None where anything differs."""
        if len(refs) != len(self.refs) or not all(map(is_, refs.values(), self.refs.values())):
            return None
        if list(refs) != list(self.refs):
            return None
        spans = file.locate(self.keys)
        if spans is self.spans:
            return replace(self, tensors=replace(self.tensors, source=file.source))
        if [spans[key][1] if key in spans else -1 for key in self.keys] != [self.spans[key][1] for key in self.keys]:
            return None
        offsets = array("q", [spans[key][0] + begin for key, begin in zip(self.keys, self.begins, strict=True)])
        return replace(self, spans=spans, tensors=replace(self.tensors, offsets=offsets, source=file.source))


def _likeness(refs: Mapping[str, object]) -> tuple[int, str]:
    """Return what is equal in sets of tensors that may be alike."""
    return len(refs), str(next(iter(refs), ""))


def _refusal(name: str, value: object, path: Path) -> CheckpointError:
    """Return the error for what is no tensor, or not a whole one."""
    if is_cut(value):
        return CutBetweenRanks(
            f"'{name}' is cut between ranks, and here is the share of one ({value.kind.rpartition('.')[2]})",
            subject=path,
            hint="bring the files of all ranks into its folder, with names that differ in the rank: model_rank_0.pt",
        )
    kind = value.kind if isinstance(value, Inert) else type(value).__name__
    reason = value.reason if isinstance(value, Refused) else f"it is not a tensor but a {kind}"
    return CheckpointError(f"'{name}' cannot be averaged: {reason}", subject=path)
