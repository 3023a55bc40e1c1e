"""Read a safetensors file. Only the header is parsed; tensors are read by range.

Stricter than the official reader where that one is lenient: no duplicate keys, no space before the header.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import DTYPES, MAX_NAME_CHARS, MAX_TENSORS, DType, TensorSpec, Weights
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.json_text import parse_json
from ema_cli.input_file import InputFile

MAX_HEADER_BYTES = 100_000_000  # as in the official reader
_MAX_ELEMENTS = 1 << 62
_MAX_DIMENSIONS = 64  # as in torch and numpy


@dataclass(slots=True)
class SafetensorsWeights:
    """The tensors of one safetensors file."""

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]  # name -> byte in the file's data
    data_start: int
    file: InputFile
    metadata: Mapping[str, str]

    def share(self, other: Weights) -> None:
        """Use the other's tables where they are equal."""
        if self.specs == other.specs:
            self.specs = other.specs
        if isinstance(other, SafetensorsWeights) and self.offsets == other.offsets:
            self.offsets = other.offsets

    def place(self, name: str) -> tuple[int, int]:
        """Return offset and size: two tensors without bytes may start at one offset."""
        return self.offsets[name], self.specs[name].nbytes

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`."""
        return self.file.path.name

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        self.file.read_into(self.data_start + self.offsets[name] + start, out)


def open_file(path: Path) -> SafetensorsWeights:
    """Read the header of the safetensors file at `path`.

    Raises:
        CheckpointError: naming the file, the tensor and what is wrong.
    """
    file = InputFile(path)
    return _read_header(file)


def _read_header(file: InputFile) -> SafetensorsWeights:
    path = file.path
    if file.size < 8:
        raise IncompleteCheckpoint(f"{path}: holds {file.size} bytes, less than a safetensors header")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: a header of {length} bytes is no safetensors header")
    if 8 + length > file.size:
        raise IncompleteCheckpoint(f"{path}: cut short: its header takes {length} bytes of {file.size}")
    text = file.read(8, length)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path}: not a safetensors file: its header does not begin with '{{'")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not valid: {error}") from error
    metadata = _metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path}: holds {len(header)} tensors; at most {MAX_TENSORS} are read")
    specs: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for name in list(header):
        entry = header.pop(name)  # a hundred thousand parsed entries would be in the way of what is kept
        name = sys.intern(name)  # one copy of each name, however many checkpoints have it
        specs[name], begin, end = _read_entry(path, name, entry)
        spans.append((begin, end, name))
    _check_contiguous(file, 8 + length, spans)
    offsets = {name: begin for begin, _, name in spans}
    return SafetensorsWeights(specs, offsets, 8 + length, file, metadata)


def _metadata(path: Path, metadata: Any) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: the header's '__metadata__' does not map text to text")
    return metadata


def _read_entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    if len(name) > MAX_NAME_CHARS:
        raise CheckpointError(f"{path}: '{name[:40]}...' is a name of {len(name)} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{path}: the tensor name '{name}' is not valid text") from None
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: '{name}' needs exactly dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or len(shape) > _MAX_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: '{name}' has a shape or offsets that are not counts")
    spec = TensorSpec(_dtype(path, name, entry["dtype"]), tuple(shape))
    begin, end = offsets
    if spec.count * spec.dtype.bits % 8:
        raise CheckpointError(f"{path}: '{name}' is {spec}, which is no whole number of bytes")
    if spec.count > _MAX_ELEMENTS or end - begin != spec.nbytes:
        raise CheckpointError(f"{path}: '{name}' is {spec}, {spec.nbytes} bytes, but has {end - begin}")
    return spec, begin, end


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _dtype(path: Path, name: str, dtype: Any) -> DType:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if found is None or found.name == "C128":  # ours, not safetensors'
        raise CheckpointError(
            f"{path}: '{name}' has dtype {str(dtype)[:40]}, which is unknown",
            hint="average the run's full-precision checkpoints",
        )
    return found


def _check_contiguous(file: InputFile, data_start: int, spans: list[tuple[int, int, str]]) -> None:
    spans.sort()
    position = 0
    for begin, end, name in spans:
        if begin != position:
            kind = "a hole" if begin > position else "an overlap"
            raise CheckpointError(f"{file.path}: {kind} before '{name}', at byte {begin} of the data")
        position = end
    if data_start + position > file.size:
        raise IncompleteCheckpoint(
            f"{file.path}: cut short: {file.size} bytes of {data_start + position}",
            hint="its writer did not finish",
        )
    if data_start + position < file.size:
        raise CheckpointError(f"{file.path}: {file.size - data_start - position} bytes follow the last tensor")
