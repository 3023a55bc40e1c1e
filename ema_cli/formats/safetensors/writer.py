"""What the output will be, to the byte, before a tensor is read: which file holds which tensor, and where.

The container here is safetensors, in the order, escaping and padding of the official writer (0.8): the same tensors
with the same metadata give the same bytes. It is written here because the official writer needs all tensors in
memory, and orders several metadata keys at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.formats.output_file import Stream, Table

_RANK = {name: rank for rank, name in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class SafetensorsOutput:
    """One safetensors file to write; those of several averages share their table."""

    name: str
    table: Table
    metadata: bytes  # its part of the header

    @property
    def header(self) -> bytes:
        """Return the bytes before the tensors."""
        text = b"{%b}" % b",".join(filter(None, (self.metadata, self.table.text)))
        text = text.ljust(self.header_size - 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def header_size(self) -> int:
        """Return the size of the header: eight bytes that say how long it is, and text up to the next eight."""
        comma = bool(self.metadata and self.table.text)
        length = len(self.metadata) + len(self.table.text) + len("{}") + comma
        return 8 + length + -length % 8

    @property
    def size(self) -> int:
        """Return the size of the file."""
        return self.header_size + self.table.nbytes

    def finish(self, stream: Stream) -> None:
        """Write nothing: all of it is known beforehand."""


def lay_out_file(
    name: str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tables: Sequence[Table] = ()
) -> SafetensorsOutput:
    """Return the layout of a safetensors file; of the `tables`, one of these tensors is used again."""
    table = next((table for table in tables if table.specs == specs), None) or _make_table(specs)
    text = f'"__metadata__":{_json(dict(sorted(metadata.items())))}' if metadata else ""
    return SafetensorsOutput(name, table, text.encode())


def _make_table(specs: Mapping[str, TensorSpec]) -> Table:
    """Put the widest dtypes first, then go by name, without gaps."""
    ordered = sorted(specs, key=lambda tensor: (_RANK[specs[tensor].dtype.name], tensor))
    # Piece by piece: a hundred thousand tensors need no hundred thousand dicts.
    pieces = []
    begins: dict[str, int] = {}
    position = 0
    for tensor in ordered:
        spec = specs[tensor]
        begins[tensor] = position
        end = position + spec.nbytes
        entry = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": [position, end]}
        pieces.append(f"{_json(tensor)}:{_json(entry)}")
        position = end
    return Table(",".join(pieces).encode(), begins, {tensor: specs[tensor] for tensor in ordered}, position)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def split_shards(specs: Mapping[str, TensorSpec], most_bytes: int, base: str) -> dict[str, str]:
    """Return the file in which each tensor is written: one after another, up to `most_bytes` in each.

    As huggingface_hub splits, given the tensors in this order: a tensor of more bytes has a file of its own, and a
    single file has no number.
    """
    shards: list[list[str]] = []
    current: list[str] = []
    taken = 0
    for name, spec in specs.items():
        if spec.nbytes > most_bytes:
            shards.append([name])
            continue
        if current and taken + spec.nbytes > most_bytes:
            shards.append(current)
            current, taken = [], 0
        current.append(name)
        taken += spec.nbytes
    if current:
        shards.append(current)
    count = len(shards)
    numbers = [f"-{number:05d}-of-{count:05d}" if count > 1 else "" for number in range(1, count + 1)]
    return {
        name: f"{base}{number}.safetensors" for number, shard in zip(numbers, shards, strict=True) for name in shard
    }


def lay_out_shards(
    specs: Mapping[str, TensorSpec],
    shard_of: Mapping[str, str],
    metadata: Mapping[str, str],
    tables: Sequence[Table] = (),
) -> tuple[list[SafetensorsOutput], bytes]:
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
    return [lay_out_file(name, parts[name], metadata, tables) for name in names], text
