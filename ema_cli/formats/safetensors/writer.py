"""Lay out safetensors files: which file holds which tensor, and at which byte, before any tensor is read.

Order, escaping and padding are those of the official writer (0.8): the same tensors with the same metadata give the
same bytes. The official writer itself needs all tensors in memory, and orders several metadata keys at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES
from ema_cli.formats.output_file import Stream, Table

_RANK = {name: rank for rank, name in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class SafetensorsOutput:
    """One safetensors file to write; an `OutputFile`. `metadata` is the part of the header with the metadata."""

    name: str
    table: Table
    metadata: bytes

    @property
    def header(self) -> bytes:
        """Return the bytes before the tensors."""
        comma = b"," if self.metadata and self.table.text else b""
        parts = (b"{", self.metadata, comma, self.table.text, b"}")
        length = self.header_size - 8
        spaces = b" " * (length - sum(map(len, parts)))
        return b"".join((length.to_bytes(8, "little"), *parts, spaces))  # in one go: it can be tens of megabytes

    @property
    def header_size(self) -> int:
        """Return the size of the header: eight bytes with its length, and text filled up to a multiple of eight."""
        comma = bool(self.metadata and self.table.text)
        length = len(self.metadata) + len(self.table.text) + len("{}") + comma
        return 8 + length + -length % 8

    @property
    def size(self) -> int:
        """Return the size of the file."""
        return self.header_size + self.table.nbytes

    def finish(self, stream: Stream) -> None:
        """Write nothing: all bytes but the tensors' are in the header."""


def lay_out_file(
    name: str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tables: Sequence[Table] = ()
) -> SafetensorsOutput:
    """Return the layout of a safetensors file.

    Args:
        name: the name of the file.
        specs: its tensors, in any order.
        metadata: the header's `__metadata__`.
        tables: tables of other files; one of equal tensors is used again.
    """
    table = next((table for table in tables if table.specs == specs), None) or _make_table(specs)
    text = f'"__metadata__":{_json(dict(sorted(metadata.items())))}' if metadata else ""
    return SafetensorsOutput(name, table, text.encode())


def _make_table(specs: Mapping[str, TensorSpec]) -> Table:
    """Place the tensors one behind the other: the widest dtypes first, tensors of one dtype by name."""
    ordered = sorted(specs, key=lambda tensor: (_RANK[specs[tensor].dtype.name], tensor))
    text = bytearray()  # made entry by entry: a hundred thousand tensors need no hundred thousand dicts, or texts
    begins: dict[str, int] = {}
    position = 0
    for tensor in ordered:
        spec = specs[tensor]
        begins[tensor] = position
        end = position + spec.nbytes
        entry = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": [position, end]}
        text += f"{',' if text else ''}{_json(tensor)}:{_json(entry)}".encode()
        position = end
    return Table(bytes(text), begins, {tensor: specs[tensor] for tensor in ordered}, position)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def split_shards(specs: Mapping[str, TensorSpec], most_bytes: int, base: str) -> dict[str, str]:
    """Return the name of the file in which each tensor is written, up to `most_bytes` of tensors in each file.

    Tensors are taken in order, as huggingface_hub does it (`split_state_dict_into_shards_factory`). A tensor of more
    than `most_bytes` has a file of its own; a single file has no number. With base "model", at most 10 bytes, and
    tensors a, b and c of 6, 4 and 8 bytes: a and b are in model-00001-of-00002.safetensors, c in
    model-00002-of-00002.safetensors.
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
    """Return the layouts of the shards, and the text of their index.

    Args:
        specs: all tensors.
        shard_of: the name of each tensor's file.
        metadata: the `__metadata__` of each shard.
        tables: tables of other files; one of equal tensors is used again.
    """
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
