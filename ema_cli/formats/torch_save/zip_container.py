"""Read the zip archives that `torch.save` writes since 1.6, without torch: a pickle, and an entry for each storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ema_cli.errors import CheckpointError, NoWeights
from ema_cli.formats.mark import MAX_MARK_BYTES, RECORD, parse_mark
from ema_cli.formats.pickles.machine import MAX_PICKLE_BYTES
from ema_cli.formats.pickles.unpickle import unpickle
from ema_cli.formats.pickles.values import PickleError
from ema_cli.formats.torch_save.tensors import Span, TorchFile
from ema_cli.formats.torch_save.zip_directory import ZipEntry, data_offset, data_offsets, read_directory
from ema_cli.storage.source import ByteSource, FileRegion

Entries = dict[str, ZipEntry]


def open_zip(source: ByteSource, max_pickle_bytes: int = MAX_PICKLE_BYTES) -> TorchFile:
    """Read the directory and the pickle of an archive of torch's, which is a file or a record of a shard.

    Raises:
        CheckpointError: for another kind of archive, a damaged one, or one that must not be read as weights.
    """
    entries = read_directory(source)
    prefix = _find_prefix(source, entries)
    for entry in entries.values():
        if entry.method:
            raise CheckpointError(
                f"the zip entry '{entry.name}' is compressed; torch stores entries as they are",
                subject=source.path,
                hint="load it with torch and save it again",
            )
    _check_byte_order(source, entries, prefix)
    root = _unpickle(source, entries[f"{prefix}data.pkl"], max_pickle_bytes)

    def locate(keys: Iterable[str]) -> Mapping[str, Span]:
        stored = {key: entry for key in keys if (entry := entries.get(f"{prefix}data/{key}")) is not None}
        starts = data_offsets(source, list(stored.values()))
        return {key: (start, entry.size) for (key, entry), start in zip(stored.items(), starts, strict=True)}

    return TorchFile(source, root, locate, _mark(source, entries.get(f"{prefix}{RECORD}")))


def read_description(source: ByteSource) -> bytes:
    """Return the pickle in an archive of torch's, as it stands there; raise as `open_zip`."""
    entries = read_directory(source)
    entry = entries[f"{_find_prefix(source, entries)}data.pkl"]
    if entry.size > MAX_PICKLE_BYTES or entry.method:
        raise CheckpointError(f"its pickle of {entry.size} bytes is no description", subject=source.path)
    return source.read(data_offset(source, entry), entry.size)


def _find_prefix(source: ByteSource, entries: Entries) -> str:
    """Return the folder inside the archive; torch names it after the file."""
    prefixes = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    prefixes = [prefix for prefix in prefixes if prefix.count("/") == 1]
    if len(prefixes) != 1:
        if any(name.endswith(".npy") for name in entries):
            raise NoWeights("an archive of numpy's", subject=source.path, hint="give it a name that ends in .npz")
        raise NoWeights("a zip archive, but not one that torch.save wrote", subject=source.path)
    prefix = prefixes[0]
    text = "\n".join(("", *entries))
    if f"\n{prefix}code/" in text or f"\n{prefix}constants.pkl" in text:
        raise CheckpointError(
            "a TorchScript archive, which is a program",
            subject=source.path,
            hint="save the model's state_dict() and average those files",
        )
    return prefix


def _check_byte_order(source: ByteSource, entries: Entries, prefix: str) -> None:
    entry = entries.get(f"{prefix}byteorder")
    if entry is not None and entry.size <= 16:
        order = source.read(data_offset(source, entry), entry.size)
        if order != b"little":
            raise CheckpointError(f"its bytes are in {order!r} order; only little-endian is read", subject=source.path)


def _mark(source: ByteSource, entry: ZipEntry | None) -> Mapping[str, object] | None:
    """Return the content of our mark, None where there is no such record."""
    if entry is None:
        return None
    if entry.size > MAX_MARK_BYTES:
        return {}
    return parse_mark(source.read(data_offset(source, entry), entry.size))


def _unpickle(source: ByteSource, entry: ZipEntry, max_bytes: int) -> Any:
    if entry.size > max_bytes:
        raise CheckpointError(f"its pickle of {entry.size} bytes is too large to be a description", subject=source.path)
    start = data_offset(source, entry)
    try:
        return unpickle(FileRegion(source, start, entry.size))[0]
    except PickleError as error:
        raise CheckpointError(f"the pickle in it cannot be read: {error}", subject=source.path) from error
