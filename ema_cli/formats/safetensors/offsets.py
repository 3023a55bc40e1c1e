"""Where in whole tensors the pieces in a safetensors file begin, as torch's HuggingFaceStorageWriter says it."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.json_text import parse_json
from ema_cli.formats.safetensors.tensors import SafetensorsTensors

SHARDING_INFO = "DCP_SHARDING_INFO"  # in the header's metadata: {name: {"saved_offsets": [0, 4]}}
_OFFSETS = "saved_offsets"
_MOST = 1 << 62  # as many elements as any tensor has
# As `json.dumps` writes it, without brackets in names.
_ENTRY = r'"%s": \{"saved_offsets": \[%s\]\}'
_PARTS = r'[^"\\\x00-\x1f\[]++', r"[0-9, ]*+"
_ENTRIES = re.compile(_ENTRY % tuple(f"({part})" for part in _PARTS))
_WHOLE = re.compile(rf"\{{(?:{_ENTRY % _PARTS}(?:, (?=\")|(?=\}}$)))*+\}}")
_LIST = re.compile(r"\[([0-9, ]*)\]")
_MOST_KNOWN = 1 << 10


def saved_offsets(tensors: SafetensorsTensors) -> Mapping[str, tuple[int, ...]] | None:
    """Return where the piece of each tensor begins, in elements; None where the file says nothing of pieces.

    Raises:
        CheckpointError: where it says so in another way than torch's writer.
    """
    text = tensors.metadata.get(SHARDING_INFO)
    return None if text is None else _read(_table(text, tensors), tensors)


@dataclass(frozen=True, slots=True)
class _Known:
    """A text that was read: the texts of other ranks mostly differ in the numbers alone.

    Attributes:
        specs: the tensors of the file.
        order: of each tensor the number of its list among all in the text.
        dimensions: of each tensor.
    """

    specs: Mapping[str, TensorSpec]
    order: Sequence[int]
    dimensions: Sequence[int]


class OffsetReader:
    """Reads where pieces begin in the files of all ranks, most of them by what was read before."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], _Known] = {}

    def read(self, tensors: SafetensorsTensors) -> array[int]:
        """Return where the pieces begin, in elements: of each tensor in its order as many numbers as dimensions.

        A file that says nothing of pieces has whole tensors. Raises as `saved_offsets`.
        """
        text = tensors.metadata.get(SHARDING_INFO)
        if text is None:
            return array("q", [0]) * sum(len(spec.shape) for spec in tensors.specs.values())
        parts = _LIST.split(text)
        # No part has "[]" in it, so texts with equal digests are equal but for what is between brackets.
        key = id(tensors.specs), blake2b("[]".join(parts[::2]).encode(errors="surrogatepass")).digest()
        known = self._known.get(key) or _learn(text, tensors.specs)
        flat = None if known is None else _flat(known, parts[1::2])
        if known is None or flat is None:
            return array("q", chain.from_iterable(_read(_table(text, tensors), tensors).values()))
        if len(self._known) < _MOST_KNOWN:
            self._known[key] = known  # which keeps the specs, so that no others take their id
        return flat


def _learn(text: str, specs: Mapping[str, TensorSpec]) -> _Known | None:
    """Return what tells the lists of a text; None where it is written in another way, or says nothing of a tensor."""
    names = [match[1] for match in _ENTRIES.finditer(text)] if _WHOLE.fullmatch(text) else []
    number_of = {name: number for number, name in enumerate(names)}
    if len(number_of) < len(names) or not all(map(number_of.__contains__, specs)):
        return None
    return _Known(specs, [number_of[name] for name in specs], [len(spec.shape) for spec in specs.values()])


def _flat(known: _Known, texts: Sequence[str]) -> array[int] | None:
    """Return the offsets in lists, in the order of the tensors; None where they are none: reading them says why."""
    lists = _parse(texts)
    if lists is None:
        return None
    own = [lists[number] for number in known.order]
    flat = list(chain.from_iterable(own))
    return array("q", flat) if list(map(len, own)) == known.dimensions and max(flat, default=0) < _MOST else None


def _parse(lists: Sequence[str]) -> list[list[int]] | None:
    """Return the numbers in lists, which hold digits, commas and spaces; None where one is no list of JSON's."""
    try:
        values = json.loads(f"[[{'],['.join(lists)}]]") if lists else []
    except ValueError:
        return None
    return values if len(values) == len(lists) else None


def _table(text: str, tensors: SafetensorsTensors) -> Any:
    try:
        return parse_json(text.encode())
    except ValueError as error:
        raise CheckpointError(f"its '{SHARDING_INFO}' is not valid: {error}", subject=tensors.file.path) from error


def _read(table: Any, tensors: SafetensorsTensors) -> dict[str, tuple[int, ...]]:
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
