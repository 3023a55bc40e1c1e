"""Read the zip archives that `torch.save` writes since 1.6, without torch: a pickle, and an entry for each storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.before import Before
from ema_cli.formats.mark import MAX_MARK_BYTES, RECORD, parse_mark
from ema_cli.formats.pickles.batches import MOST_BYTES, Batches
from ema_cli.formats.pickles.machine import MAX_PICKLE_BYTES
from ema_cli.formats.pickles.unpickle import unpickle
from ema_cli.formats.pickles.values import PickleError
from ema_cli.formats.torch_save.archive import Archive, Span
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.storage.source import ByteSource, FileRegion
from ema_cli.system.memory import give_back

_PICKLE, _BYTE_ORDER, _STORAGES = "data.pkl", "byteorder", "data/"
_MOST_KEPT_BYTES = 1 << 20  # of a pickle that is kept
_VALUE_BYTES, _BATCH_BYTES = 6, 8  # that its value takes for each byte, and those of batches, which it shares
_MOST_NAMES = 1 << 10  # of classes and functions, that are kept with it


def open_zip(
    source: ByteSource,
    max_pickle_bytes: int = MAX_PICKLE_BYTES,
    before: Before | None = None,
    names: set[str] | None = None,
) -> TorchFile:
    """Read the directory and the pickle of an archive of torch's, which is a file or a record of a shard.

    Args:
        source: the archive.
        max_pickle_bytes: how large its pickle may be.
        before: what the files of the run were that were read before.
        names: takes the classes and functions that its pickle names.

    Raises:
        CheckpointError: for another kind of archive, a damaged one, or one that must not be read as weights.
    """
    archive = Archive(source, before)
    _check_byte_order(source, archive)
    root = _unpickle(source, archive, max_pickle_bytes, before, names)

    give_back(archive.count)

    def locate(keys: Iterable[str]) -> Mapping[str, Span]:
        return archive.spans(keys, _STORAGES)

    return TorchFile(source, root, locate, _mark(archive), before)


def read_description(source: ByteSource) -> bytes:
    """Return the pickle in an archive of torch's, as it stands there; raise as `open_zip`."""
    archive = Archive(source, None)
    size = archive.size(_PICKLE) or 0
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"its pickle of {size} bytes is no description", subject=source.path)
    return archive.read(_PICKLE)


def _check_byte_order(source: ByteSource, archive: Archive) -> None:
    size = archive.size(_BYTE_ORDER)
    if size is not None and size <= 16:
        order = archive.read(_BYTE_ORDER)
        if order != b"little":
            raise CheckpointError(f"its bytes are in {order!r} order; only little-endian is read", subject=source.path)


def _mark(archive: Archive) -> Mapping[str, object] | None:
    """Return the content of our mark, None where there is no such record."""
    size = archive.size(RECORD)
    if size is None:
        return None
    return {} if size > MAX_MARK_BYTES else parse_mark(archive.read(RECORD))


class _Names(set[str]):
    """The classes and functions that a pickle names; a program may name millions, which nobody asked for."""

    are_all = True

    def add(self, name: str, /) -> None:
        """Add one, unless there are too many."""
        if len(self) < _MOST_NAMES:
            super().add(name)
        else:
            self.are_all = False

    def update(self, *names: Iterable[str]) -> None:
        """Add several, one by one."""
        for each in names:
            for name in each:
                self.add(name)


@dataclass(frozen=True, slots=True)
class _Pickle:
    """A pickle that was read, its value, and what it names; None where that is too much."""

    data: bytes
    value: Any
    names: frozenset[str] | None


def _unpickle(
    source: ByteSource, archive: Archive, max_bytes: int, before: Before | None, names: set[str] | None
) -> Any:
    ((start, size),) = archive.spans((_PICKLE,)).values()
    if size > max_bytes:
        raise CheckpointError(f"its pickle of {size} bytes is too large to be a description", subject=source.path)
    region = FileRegion(source, start, size)
    data = region.read(0, size) if before is not None and size <= _MOST_KEPT_BYTES else None
    known = before.get(_Pickle, size) if before is not None else None
    if known is not None and known.data == data and (names is None or known.names is not None):
        if names is not None:
            names.update(known.names or ())
        return known.value
    batches = None if before is None else before.one(Batches, Batches, MOST_BYTES * _BATCH_BYTES)
    named = _Names() if names is None else names
    try:
        value, _ = unpickle(region, batches=batches, names=named)
    except PickleError as error:
        raise CheckpointError(f"the pickle in it cannot be read: {error}", subject=source.path) from error
    if before is not None and data is not None:
        kept = frozenset(named) if len(named) <= _MOST_NAMES and getattr(named, "are_all", True) else None
        before.keep(size, _Pickle(data, value, kept), size * _VALUE_BYTES)
    return value
