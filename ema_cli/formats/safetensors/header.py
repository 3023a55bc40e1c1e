"""Read safetensors files. Only the header is parsed; tensors are read by range.

Stricter than the official reader: no duplicate keys, no space before the header.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from json import JSONDecoder
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_TENSORS, TensorSpec, check_tensor_name
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES, DType
from ema_cli.errors import CUT_SHORT, CheckpointError, IncompleteCheckpoint
from ema_cli.formats.before import Before
from ema_cli.formats.json_text import parse_json, unique
from ema_cli.formats.safetensors.tensors import SafetensorsTensors
from ema_cli.formats.spec_table import SpecTable
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile
from ema_cli.system.memory import give_back

MAX_HEADER_BYTES = 100_000_000  # as in the official reader
_LONG = 1 << 20  # bytes of a header, from which on a pattern finds its entries sooner than JSON is parsed
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_METADATA = b'{"__metadata__":'  # with which a header begins that has any
_METADATA_FIRST = re.compile(rb'\{"__metadata__":(\{(?:%b:%b(?:,(?!\})|(?=\})))*+\}),' % (_TEXT, _TEXT), re.DOTALL)

_MINUS_ZERO = re.compile(rb"[\[,\s]-0")  # maybe: JSON has it, and the official reader takes it for no count


def open_file(path: Path, before: Before | None = None) -> SafetensorsTensors:
    """Read the header of the safetensors file at `path`.

    Args:
        path: the file.
        before: what the files of the run were that were read before.

    Raises:
        CheckpointError: naming the file, the tensor and what is wrong.
    """
    file = location(path).open()
    return read_header(file, header_text(file), before)


def header_text(file: InputFile) -> bytes:
    """Return the header of a file, as it stands there.

    Raises:
        CheckpointError: where it is too long, or the file too short.
    """
    path = file.path
    if file.size < 8:
        raise IncompleteCheckpoint(f"holds {file.size} bytes, less than a safetensors header", subject=path)
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"a header of {length} bytes is no safetensors header", subject=path)
    if 8 + length > file.size:
        raise IncompleteCheckpoint(f"cut short: its header takes {length} bytes of {file.size}", subject=path)
    return file.read(8, length)


def header_digest(text: bytes) -> bytes:
    """Return a digest of a header, which is not changed by the order of its metadata: its writer leaves that to chance.

    What is no such header has its own digest: reading it says what is wrong.
    """
    digest, rest = blake2b(len(text).to_bytes(8)), text
    if text.startswith(_METADATA):
        try:
            decoded = text.decode()
            metadata, end = JSONDecoder().raw_decode(decoded, len(_METADATA))
        except (ValueError, RecursionError):
            metadata = None
        if isinstance(metadata, dict):
            rest = repr(sorted(metadata.items(), key=itemgetter(0))).encode() + decoded[end:].encode()
    digest.update(rest)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Known:
    """The tensors of a file that was read, and the size of its data."""

    tensors: SafetensorsTensors
    nbytes: int


def read_header(file: InputFile, text: bytes, before: Before | None = None) -> SafetensorsTensors:
    """Return the tensors of a file with this header; raise as `open_file`.

    In a run most headers are equal, but for the metadata, which the official writer puts first.
    """
    start = 8 + len(text)
    match = _METADATA_FIRST.match(text)
    # Spaces behind the header make its length a multiple of 8.
    key = bool(match), blake2b((text[match.end() :] if match else text).rstrip(b" ")).digest()
    known = before.get(_Known, key) if before is not None else None
    # The size of the data follows from the header: an equal one is right in a file with as many, and in no other.
    if known is not None and known.nbytes == file.size - start:
        with suppress(ValueError, CheckpointError):  # in which case the whole header gives the error
            metadata = _metadata(file.path, parse_json(match[1])) if match else known.tensors.metadata
            return replace(known.tensors, file=file, data_start=start, metadata=metadata)
    tensors = _parse_long(file, text, match) if match and len(text) > _LONG else None
    tensors = tensors or _parse_header(file, text)
    if before is not None:
        before.keep(key, _Known(tensors, file.size - start), len(text))
    return tensors


def _parse_header(file: InputFile, text: bytes) -> SafetensorsTensors:
    path = file.path
    if not text.startswith(b"{"):
        raise CheckpointError("not a safetensors file: its header does not begin with '{'", subject=path)
    table = SpecTable()

    def compact(pairs: list[tuple[str, Any]]) -> Any:
        # Done while the text is parsed: dicts and lists of a hundred thousand entries would take ten times the memory.
        entry = unique(pairs)
        try:
            return _read_entry(entry, table)
        except _WrongEntry:
            return entry  # the metadata or the header itself; anything else is refused below, by its name

    try:
        header = parse_json(text, objects=compact, integers=_integer if _MINUS_ZERO.search(text) else None)
    except ValueError as error:
        raise CheckpointError(f"the header is not valid: {error}", subject=path) from error
    if not isinstance(header, dict):
        raise CheckpointError("the header is the entry of one tensor, without its name", subject=path)
    metadata = _metadata(path, header.pop("__metadata__", None))
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"holds {len(header)} tensors; at most {MAX_TENSORS} are read", subject=path)
    specs: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for name in list(header):
        entry = header.pop(name)
        check_tensor_name(name, path)
        name = sys.intern(name)  # one copy of each name, however many checkpoints have it
        try:
            specs[name], begin, end = entry if isinstance(entry, tuple) else _read_entry(entry, table)
        except _WrongEntry as wrong:
            raise CheckpointError(f"'{name}' {wrong}", subject=path, hint=wrong.hint) from None
        spans.append((begin, end, name))
    return _tensors(file, text, specs, spans, metadata)


def _parse_long(file: InputFile, text: bytes, metadata: re.Match[bytes]) -> SafetensorsTensors | None:
    """Return the same of a header as the official writer writes it; None of any other, for the parser of JSON."""
    from ema_cli.formats.safetensors.entries import plain_entries  # which few files need

    table = SpecTable()

    def spec_of(dtype: bytes, shape: bytes) -> TensorSpec:
        lengths = [int(length) for length in shape.split(b",") if length]
        count = prod(lengths)
        known = _dtype(dtype.decode())
        end = count * known.bits // 8
        return _read_entry({"dtype": known.name, "shape": lengths, "data_offsets": [0, end]}, table)[0]

    specs: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    try:
        for name, spec, begin, end in plain_entries(text[metadata.end() :], spec_of) or ():
            check_tensor_name(name, file.path)
            name = sys.intern(name)
            if name in specs or len(specs) == MAX_TENSORS:
                return None
            specs[name] = spec
            spans.append((begin, end, name))
        about = _metadata(file.path, parse_json(metadata[1]))
    except (ValueError, _WrongEntry, CheckpointError):
        return None
    return _tensors(file, text, specs, spans, about) if specs else None


def _tensors(
    file: InputFile,
    text: bytes,
    specs: dict[str, TensorSpec],
    spans: list[tuple[int, int, str]],
    metadata: Mapping[str, str],
) -> SafetensorsTensors:
    _check_contiguous(file, 8 + len(text), spans)
    offsets = {name: begin for begin, _, name in spans}
    spans.clear()
    give_back(len(specs))
    return SafetensorsTensors(specs, offsets, 8 + len(text), file, metadata)


def _metadata(path: Path, metadata: Any) -> Mapping[str, str]:
    if metadata is None:  # none there, or null: so MLX writes, and the official reader reads
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("the header's '__metadata__' does not map text to text", subject=path)
    try:
        "".join(metadata.values()).encode()
    except UnicodeEncodeError:
        raise CheckpointError("the header's '__metadata__' holds what is not valid text", subject=path) from None
    return metadata


class _WrongEntry(Exception):
    """What is wrong with a tensor's entry. The message lacks the tensor's name, which comes before it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def _read_entry(entry: Any, table: SpecTable) -> tuple[TensorSpec, int, int]:
    """Return the spec of a tensor, and where its bytes begin and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _WrongEntry("needs exactly dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise _WrongEntry("has a shape or offsets that are not counts")
    spec = table.spec(_dtype(entry["dtype"]), tuple(shape))
    begin, end = offsets
    if spec.count * spec.dtype.bits % 8:
        raise _WrongEntry(f"is {spec}, which is no whole number of bytes")
    if spec.count > MAX_ELEMENTS or end - begin != spec.nbytes:
        raise _WrongEntry(f"is {spec}, {spec.nbytes} bytes, but has {end - begin}")
    return spec, begin, end


def _integer(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is no count")
    return int(text)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _dtype(dtype: Any) -> DType:
    known = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if known is None or not known.in_safetensors:
        raise _WrongEntry(
            f"has dtype {str(dtype)[:40]}, which is unknown", hint="average the run's full-precision checkpoints"
        )
    return known


def _check_contiguous(file: InputFile, data_start: int, spans: list[tuple[int, int, str]]) -> None:
    """Check that the tensors lie one behind the other from the end of the header to the end of the file."""
    spans.sort()
    position = 0
    for begin, end, name in spans:
        if begin != position:
            kind = "a hole" if begin > position else "an overlap"
            raise CheckpointError(f"{kind} before '{name}', at byte {begin} of the data", subject=file.path)
        position = end
    if data_start + position > file.size:
        raise IncompleteCheckpoint(
            f"cut short: {file.size} bytes of {data_start + position}",
            subject=file.path,
            hint=CUT_SHORT,
        )
    if data_start + position < file.size:
        raise CheckpointError(f"{file.size - data_start - position} bytes follow the last tensor", subject=file.path)
