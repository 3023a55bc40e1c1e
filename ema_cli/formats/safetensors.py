"""Read safetensors: one file, or shards with an index. Only the header is parsed; tensors are read by range.

Stricter than the official reader where that one is lenient: no duplicate keys, no space before the header.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import DTYPES, DType, TensorSpec, Weights
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.json_text import is_cut, parse_json
from ema_cli.input_file import InputFile

MAX_HEADER_BYTES = 100_000_000  # as in the official reader
_MAX_ELEMENTS = 1 << 62
_MAX_DIMENSIONS = 64  # as in torch and numpy


@dataclass(slots=True)
class SafetensorsWeights:
    """The tensors of one model, stored in one safetensors file or in several shards."""

    specs: Mapping[str, TensorSpec]
    places: Mapping[str, tuple[int, int]]  # name -> which file, byte offset in its data
    data_starts: tuple[int, ...]  # of each file
    files: tuple[InputFile, ...]
    metadata: Mapping[str, str]

    def share(self, other: Weights) -> None:
        """Use the other's tables where they are equal."""
        if self.specs == other.specs:
            self.specs = other.specs
        if isinstance(other, SafetensorsWeights) and self.places == other.places:
            self.places = other.places

    def place(self, name: str) -> tuple[int, int, int]:
        """Return file, offset and size: two tensors without bytes may start at one offset."""
        return *self.places[name], self.specs[name].nbytes

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        shard, offset = self.places[name]
        self.files[shard].read_into(self.data_starts[shard] + offset + start, out)

    def shard_of(self, name: str) -> str:
        """Return the file name of the shard that holds tensor `name`."""
        return self.files[self.places[name][0]].path.name


def open_file(path: Path) -> SafetensorsWeights:
    """Read the header of the safetensors file at `path`.

    Raises:
        CheckpointError: naming the file, the tensor and what is wrong.
    """
    file = InputFile(path)
    return _read_header(file)


def open_shards(index_path: Path) -> SafetensorsWeights:
    """Read the index at `index_path` and the headers of the shards beside it.

    Raises:
        IncompleteCheckpoint: where a shard is missing.
        CheckpointError: where index and shards disagree, or a shard lies outside the folder.
    """
    weight_map = _read_index(index_path)
    specs: dict[str, TensorSpec] = {}
    places: dict[str, tuple[int, int]] = {}
    files: list[InputFile] = []
    data_starts: list[int] = []
    metadata: Mapping[str, str] = {}
    for shard_name in sorted(set(weight_map.values())):
        path = index_path.parent / shard_name
        if not os.path.exists(path):  # noqa: PTH110 - which raises nothing for a name that no file can have
            raise IncompleteCheckpoint(f"{index_path.parent}: shard '{shard_name}' is missing")
        shard = open_file(path)
        expected = {name for name, where in weight_map.items() if where == shard_name}
        for name in expected.symmetric_difference(shard.specs):
            where = "is in the shard only" if name in shard.specs else "is in the index only"
            raise CheckpointError(f"{path}: '{name}' {where}", hint="index and shards are of different saves")
        specs.update(shard.specs)
        places.update((name, (len(files), offset)) for name, (_, offset) in shard.places.items())
        files.extend(shard.files)
        data_starts.extend(shard.data_starts)
        metadata = metadata or shard.metadata
    return SafetensorsWeights(specs, places, tuple(data_starts), tuple(files), metadata)


def _read_index(path: Path) -> dict[str, str]:
    file = InputFile(path)
    if file.size > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: an index of {file.size} bytes is too large")
    text = file.read(0, file.size)
    try:
        index = parse_json(text)
    except ValueError as error:
        kind = IncompleteCheckpoint if is_cut(text) else CheckpointError
        raise kind(f"{path}: not a JSON index: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no 'weight_map'")
    for name, shard in weight_map.items():
        # A plain name only: nothing may lead out of the folder.
        if not isinstance(shard, str) or Path(shard).name != shard or shard.startswith(".") or "\0" in shard:
            raise CheckpointError(f"{path}: '{name}' is said to be in {shard!r}, which is not a file name")
    return weight_map


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
    specs: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for name in list(header):
        entry = header.pop(name)  # a hundred thousand parsed entries would be in the way of what is kept
        name = sys.intern(name)  # one copy of each name, however many checkpoints have it
        specs[name], begin, end = _read_entry(path, name, entry)
        spans.append((begin, end, name))
    _check_contiguous(file, 8 + length, spans)
    places = {name: (0, begin) for begin, _, name in spans}
    return SafetensorsWeights(specs, places, (8 + length,), (file,), metadata)


def _metadata(path: Path, metadata: Any) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: the header's '__metadata__' does not map text to text")
    return metadata


def _read_entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
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
    if spec.count > _MAX_ELEMENTS or end - begin != spec.nbytes:
        raise CheckpointError(f"{path}: '{name}' is {spec}, {spec.nbytes} bytes, but has {end - begin}")
    return spec, begin, end


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _dtype(path: Path, name: str, dtype: Any) -> DType:
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    reason = "8-bit and smaller floats cannot be averaged" if str(dtype)[:2] in ("F8", "F4", "F6") else "unknown"
    raise CheckpointError(
        f"{path}: '{name}' has dtype {dtype}: {reason}",
        hint="average the run's full-precision checkpoints and quantize the result",
    )


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
