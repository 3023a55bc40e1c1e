"""Where in whole tensors the pieces in a safetensors file begin, as torch's HuggingFaceStorageWriter says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ema_cli.errors import CheckpointError
from ema_cli.formats.json_text import parse_json
from ema_cli.formats.safetensors.header import SafetensorsTensors

SHARDING_INFO = "DCP_SHARDING_INFO"  # in the header's metadata: {name: {"saved_offsets": [0, 4]}}
_OFFSETS = "saved_offsets"
_MOST = 1 << 62  # as many elements as any tensor has


def saved_offsets(tensors: SafetensorsTensors) -> Mapping[str, tuple[int, ...]] | None:
    """Return where the piece of each tensor begins, in elements; None where the file says nothing of pieces.

    Raises:
        CheckpointError: where it says so in another way than torch's writer.
    """
    text = tensors.metadata.get(SHARDING_INFO)
    if text is None:
        return None
    path = tensors.file.path
    try:
        table = parse_json(text.encode())
    except ValueError as error:
        raise CheckpointError(f"its '{SHARDING_INFO}' is not valid: {error}", subject=path) from error
    return {name: _offsets(table, name, len(spec.shape), tensors) for name, spec in tensors.specs.items()}


def _offsets(table: Any, name: str, dimensions: int, tensors: SafetensorsTensors) -> tuple[int, ...]:
    entry = table.get(name) if isinstance(table, dict) else None
    offsets = entry.get(_OFFSETS) if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != dimensions or not all(map(_is_count, offsets)):
        raise CheckpointError(
            f"its '{SHARDING_INFO}' does not say where the piece of '{name}' begins", subject=tensors.file.path
        )
    return tuple(offsets)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST
