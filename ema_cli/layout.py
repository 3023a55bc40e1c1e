"""What the output will be, to the byte, before a tensor is read: which file holds which tensor, and where.

The container is safetensors, in the order, escaping and padding of the official writer (0.8): the same tensors
with the same metadata give the same bytes. It is written here because the official writer needs all tensors in
memory, and orders several metadata keys at random.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from ema_cli.checkpoint import DTYPES, TensorSpec

_RANK = {name: rank for rank, name in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One safetensors file to write: its header, and for each tensor the byte in the file where it begins."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    specs: Mapping[str, TensorSpec]
    size: int


def lay_out_file(name: str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> OutputFile:
    """Return the layout of a safetensors file: widest dtypes first, then by name, without gaps."""
    ordered = sorted(specs, key=lambda tensor: (_RANK[specs[tensor].dtype.name], tensor))
    # Piece by piece: a hundred thousand tensors need no hundred thousand dicts.
    pieces = [f'"__metadata__":{_json(dict(sorted(metadata.items())))}'] if metadata else []
    begins = array("q")
    position = 0
    for tensor in ordered:
        spec = specs[tensor]
        begins.append(position)
        end = position + spec.nbytes
        entry = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": [position, end]}
        pieces.append(f"{_json(tensor)}:{_json(entry)}")
        position = end
    text = f"{{{','.join(pieces)}}}".encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    offsets = {tensor: len(header) + begin for tensor, begin in zip(ordered, begins, strict=True)}
    return OutputFile(name, header, offsets, {tensor: specs[tensor] for tensor in ordered}, len(header) + position)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def lay_out_shards(
    specs: Mapping[str, TensorSpec], shard_of: Mapping[str, str], metadata: Mapping[str, str]
) -> tuple[list[OutputFile], bytes]:
    """Return the layouts of the shards (`shard_of`: tensor name -> file name) and the text of their index."""
    names = sorted(set(shard_of.values()))
    parts: dict[str, dict[str, TensorSpec]] = {name: {} for name in names}
    for tensor, spec in specs.items():
        parts[shard_of[tensor]][tensor] = spec
    totals = {
        "total_parameters": sum(spec.count for spec in specs.values()),
        "total_size": sum(spec.nbytes for spec in specs.values()),
    }
    index = {"metadata": totals, "weight_map": dict(sorted(shard_of.items()))}
    text = json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
    return [lay_out_file(name, parts[name], metadata) for name in names], text
