"""Read torch's zip files (`torch.save` since 1.6) without torch: a pickle that describes, entries that hold bytes."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import DTYPES, DType, TensorSpec, Weights
from ema_cli.errors import CheckpointError, NoWeights
from ema_cli.formats.pickle_values import PickleError, Refused, TensorRef
from ema_cli.formats.unpickle import unpickle
from ema_cli.formats.zip_directory import ZipEntry, data_offset, read_directory
from ema_cli.input_file import InputFile

_MAX_PICKLE_BYTES = 256 << 20
_MAX_EXPANDED_BYTES = 1 << 30
_TORCH_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip


class TorchArchive:
    """An open torch zip file: `root` is what was saved, with a `TensorRef` for each tensor.

    Raises:
        CheckpointError: for what is not one, is damaged, or holds something that must not be read as weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = InputFile(path)
        self.entries = read_directory(self.file)
        self.prefix = self._find_prefix()
        for entry in self.entries.values():
            if entry.compressed:
                raise CheckpointError(
                    f"{path}: the zip entry '{entry.name}' is compressed; torch stores entries as they are",
                    hint="load it with torch and save it again",
                )
        self._check_byte_order()
        self.root = self._unpickle()

    def weights(self, tensors: Mapping[str, object]) -> TorchZipWeights:
        """Return the given tensors (name -> `TensorRef`) as weights that can be read by range."""
        specs: dict[str, TensorSpec] = {}
        offsets = array("q")
        views: dict[str, _View] = {}
        starts: dict[str, int] = {}
        for name, ref in tensors.items():
            if not isinstance(ref, TensorRef):
                raise CheckpointError(f"{self.path}: '{name}' cannot be averaged: {_reason(ref)}")
            dtype = self._dtype(name, ref)
            if (ref.negative and not dtype.averaged) or (ref.conjugate and dtype.kind != "complex"):
                raise CheckpointError(f"{self.path}: '{name}' is {dtype.name} with a bit that only others have")
            entry = self._entry(name, ref, dtype)
            if entry.name not in starts:
                starts[entry.name] = data_offset(self.file, entry)
            name = sys.intern(name)  # one copy of each name, however many checkpoints have it
            specs[name] = TensorSpec(dtype, ref.shape)
            offsets.append(starts[entry.name] + ref.offset * dtype.itemsize)
            strides = None if _is_contiguous(ref.shape, ref.strides) else ref.strides
            if strides or ref.conjugate or ref.negative:
                views[name] = _View(strides, ref.conjugate, ref.negative)
        return TorchZipWeights(specs, {name: number for number, name in enumerate(specs)}, offsets, views, self.file)

    def scalar(self, name: str, ref: TensorRef) -> int | None:
        """Return the value of an integer tensor of one element (a clock), None for any other tensor."""
        dtype = DTYPES.get(_TORCH_DTYPES.get(ref.dtype, ""))
        if dtype is None or dtype.kind != "integer" or dtype.name == "BOOL" or prod(ref.shape) != 1:
            return None
        start = data_offset(self.file, self._entry(name, ref, dtype)) + ref.offset * dtype.itemsize
        return int.from_bytes(self.file.read(start, dtype.itemsize), "little", signed=dtype.name[0] == "I")

    def _find_prefix(self) -> str:
        """Return the folder inside the archive; torch names it after the file."""
        prefixes = [name.removesuffix("data.pkl") for name in self.entries if name.endswith("/data.pkl")]
        prefixes = [prefix for prefix in prefixes if prefix.count("/") == 1]
        if len(prefixes) != 1:
            raise NoWeights(f"{self.path}: a zip archive, but not one that torch.save wrote")
        prefix = prefixes[0]
        if any(name.startswith((f"{prefix}code/", f"{prefix}constants.pkl")) for name in self.entries):
            raise CheckpointError(
                f"{self.path}: a TorchScript archive, which is a program",
                hint="save the model's state_dict() and average those files",
            )
        return prefix

    def _check_byte_order(self) -> None:
        entry = self.entries.get(f"{self.prefix}byteorder")
        if entry is not None and entry.size <= 16:
            order = self.file.read(data_offset(self.file, entry), entry.size)
            if order != b"little":
                raise CheckpointError(f"{self.path}: its bytes are in {order!r} order; only little-endian is read")

    def _unpickle(self) -> Any:
        entry = self.entries[f"{self.prefix}data.pkl"]
        if entry.size > _MAX_PICKLE_BYTES:
            raise CheckpointError(f"{self.path}: its pickle of {entry.size} bytes is too large to be a description")
        try:
            return unpickle(self.file.read(data_offset(self.file, entry), entry.size))
        except PickleError as error:
            raise CheckpointError(f"{self.path}: the pickle in it cannot be read: {error}") from error

    def _dtype(self, name: str, ref: TensorRef) -> DType:
        dtype = DTYPES.get(_TORCH_DTYPES.get(ref.dtype, ""))
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: '{name}' has dtype {ref.dtype}, which cannot be averaged",
                hint="average the run's full-precision checkpoints and convert the result",
            )
        return dtype

    def _entry(self, name: str, ref: TensorRef, dtype: DType) -> ZipEntry:
        """Return the zip entry that holds the tensor's storage, after checking that the tensor lies in it."""
        entry = self.entries.get(f"{self.prefix}data/{ref.storage.key}")
        if entry is None:
            raise CheckpointError(f"{self.path}: '{name}' has its bytes in a storage that is missing")
        size = ref.storage.count * (dtype.itemsize if ref.storage.dtype else 1)
        if entry.size != size:
            raise CheckpointError(
                f"{self.path}: '{name}' has a storage of {size} bytes, but {entry.size} are in the file"
            )
        count = prod(ref.shape)
        last = sum((length - 1) * stride for length, stride in zip(ref.shape, ref.strides, strict=True))
        if count and (ref.offset + last + 1) * dtype.itemsize > entry.size:
            raise CheckpointError(f"{self.path}: '{name}' reaches past the end of its storage")
        if count * dtype.itemsize > max(entry.size, _MAX_EXPANDED_BYTES):
            raise CheckpointError(f"{self.path}: '{name}' is expanded to {count} elements from a few bytes")
        return entry


@dataclass(frozen=True, slots=True)
class _View:
    """What sets a tensor apart from its bytes in order: strides in elements (None: in order), torch's lazy bits."""

    strides: tuple[int, ...] | None
    conjugate: bool
    negative: bool


_IN_ORDER = _View(None, conjugate=False, negative=False)


@dataclass(slots=True)
class TorchZipWeights:
    """Tensors in a torch zip file, contiguous or not."""

    specs: Mapping[str, TensorSpec]
    numbers: Mapping[str, int]  # name -> index in `offsets`
    offsets: array[int]  # byte of the file at which each tensor's first element lies
    views: Mapping[str, _View]  # of those that do not lie in order
    file: InputFile

    def share(self, other: Weights) -> None:
        """Use the other's tables where they are equal."""
        if self.specs == other.specs:
            self.specs = other.specs
        if isinstance(other, TorchZipWeights) and self.numbers == other.numbers:
            self.numbers = other.numbers

    def place(self, name: str) -> Hashable:
        """Return offset, view and spec: tied tensors have them equal."""
        return self.offsets[self.numbers[name]], self.views.get(name, _IN_ORDER), self.specs[name]

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`, gathering it where it is strided."""
        offset, view, spec = self.offsets[self.numbers[name]], self.views.get(name, _IN_ORDER), self.specs[name]
        if view.strides is None:
            self.file.read_into(offset + start, out)
        else:
            from ema_cli.formats.strided import gather

            gather(self.file, offset, spec, view.strides, start, out)
        if view.conjugate or view.negative:
            from ema_cli.formats.strided import apply_lazy_bits

            apply_lazy_bits(spec.dtype, out, conjugate=view.conjugate, negative=view.negative)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the elements lie in C order without gaps (as torch's is_contiguous)."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return 0 in shape
        expected *= length
    return True


def _reason(value: object) -> str:
    if isinstance(value, Refused):
        return value.reason
    kind = getattr(value, "kind", None) or type(value).__name__
    return f"it is not a tensor but a {kind}"
