"""Read archives of numpy's, `.npz`: an entry for each array, with a header of its own before the bytes."""

from __future__ import annotations

import re
from typing import Any

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.formats.arrays.inflating import DeflatedEntry, JoinedSources
from ema_cli.formats.arrays.numpy_types import describe, dtype_of
from ema_cli.formats.arrays.trees import set_apart
from ema_cli.formats.torch_save.archive import Span
from ema_cli.formats.torch_save.content import TorchFile, locate_in
from ema_cli.formats.torch_save.zip_directory import ZipEntry, data_offsets, read_directory
from ema_cli.storage.source import ByteSource

_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_DEFLATED = 8
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the length of the header, by the version of the format
_MAX_HEADER_BYTES = 1 << 16
_FIRST_BYTES = 256  # in which nearly all headers end
_MAX_INFLATED, _MOST_TIMES = 1 << 30, 16  # in bytes; of what is stored: numbers of a model hardly get smaller
# As numpy writes it, keys in order, and as MLX does, without the last comma. A type with fields is a list here, which
# does not fit.
_HEADER = re.compile(
    r"\{'descr': '([^']{1,40})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, )*(?:\d{1,19},?)?)\)(?:, )?\}\s*",
    re.ASCII,
)


def open_npz(file: ByteSource) -> TorchFile:
    """Read the headers of all arrays in the archive.

    Raises:
        CheckpointError: for a damaged archive, and for arrays that cannot be read without running what is in them.
    """
    entries = list(read_directory(file).values())
    other = next((entry.name for entry in entries if not entry.name.endswith(_SUFFIX)), None)
    if other is not None:
        raise CheckpointError(f"holds '{other[:80]}', which is no array of numpy's", subject=file.path)
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"holds {len(entries)} arrays; at most {MAX_TENSORS} are read", subject=file.path)
    source, starts = _contents(file, entries)
    root: dict[str, Any] = {}
    spans: dict[str, Span] = {}
    for entry, start in zip(entries, starts, strict=True):
        name = entry.name.removesuffix(_SUFFIX)
        try:
            root[name], header = _read_array(source, entry, start, name)
        except CheckpointError as error:
            error.about(file.path)
            raise
        spans[name] = start + header, entry.unpacked - header

    return TorchFile(source, set_apart(root), locate_in(spans))


def _contents(file: ByteSource, entries: list[ZipEntry]) -> tuple[ByteSource, list[int]]:
    """Return what holds the contents of all entries, and the byte at which each begins in it."""
    starts = data_offsets(file, entries)
    deflated = {
        entry.name: DeflatedEntry(file, start, entry.size, entry.unpacked)
        for entry, start in zip(entries, starts, strict=True)
        if entry.method == _DEFLATED
    }
    other = next((entry for entry in entries if entry.method not in (0, _DEFLATED)), None)
    if other is not None:
        raise CheckpointError(
            f"the zip entry '{other.name}' is compressed in a way that numpy never uses",
            subject=file.path,
            hint="load it with numpy and save it again: numpy.savez",
        )
    if not deflated:
        return file, starts
    inflated, stored = (sum(size) for size in zip(*((e.size, e.stored) for e in deflated.values()), strict=True))
    if inflated > max(_MAX_INFLATED, _MOST_TIMES * stored):
        raise CheckpointError(
            f"{stored} compressed bytes of it become {inflated}, more than numbers of a model do",
            subject=file.path,
            hint="if it is a model, save it without compression: numpy.savez",
        )
    # The archive last: who looks for a zip at the beginning does not take what is inflated for one.
    source = JoinedSources.of(file.path, [*deflated.values(), file])
    places = dict(zip(deflated, source.starts, strict=False))
    behind = source.starts[-1]
    return source, [places.get(entry.name, behind + start) for entry, start in zip(entries, starts, strict=True)]


def _read_array(source: ByteSource, entry: ZipEntry, start: int, name: str) -> tuple[Any, int]:
    """Return the description of an array, or a text in the place of texts and times, and the size of its header.

    Raises:
        CheckpointError: for what is damaged, and for other types and orders of bytes.
    """
    begin = source.read(start, min(_FIRST_BYTES, entry.unpacked))
    length_bytes = _LENGTH_BYTES.get(begin[len(_MAGIC)] if len(begin) > len(_MAGIC) else 0, 0)
    at = len(_MAGIC) + 2 + length_bytes
    if not begin.startswith(_MAGIC) or not length_bytes or len(begin) < at:
        raise CheckpointError(f"'{name}' does not begin as an array of numpy's")
    size = at + int.from_bytes(begin[at - length_bytes : at], "little")
    if size > min(entry.unpacked, _MAX_HEADER_BYTES):
        raise CheckpointError(f"the header of '{name}' has {size} bytes, which it cannot have")
    header = begin[:size] if size <= len(begin) else source.read(start, size)
    match = _HEADER.fullmatch(header[at:].decode("latin-1"))
    if match is None:
        raise CheckpointError(
            f"the header of '{name}' is none that numpy writes for plain numbers",
            hint="save each array by itself, as numbers: arrays with fields are not read",
        )
    dtype = dtype_of(match[1], name)
    if dtype is None:
        return "text", size
    shape = tuple(int(length) for length in match[3].split(",") if length.strip())
    ref = describe(name, dtype, shape, by_columns=match[2] == "True")
    if ref.storage.count * TORCH_DTYPES[dtype].itemsize != entry.unpacked - size:
        raise CheckpointError(f"'{name}' is {list(shape)}, for which it has {entry.unpacked - size} bytes")
    return ref, size
