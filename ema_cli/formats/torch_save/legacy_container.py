"""Read the files that `torch.save` wrote before torch 1.6, and still writes on request, without torch.

They hold, one after the other: a pickled magic number, a protocol number, facts about the system, the pickle of the
object that was saved, a pickled list of storage keys, and for each key the number of its elements and their bytes.
"""

from __future__ import annotations

from typing import Any

from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CUT_SHORT, CheckpointError, IncompleteCheckpoint, NoWeights
from ema_cli.formats.pickles.unpickle import describe_storage, unpickle
from ema_cli.formats.pickles.values import PickleEnds, PickleError, Storage
from ema_cli.formats.torch_save.archive import Span
from ema_cli.formats.torch_save.content import TorchFile, locate_in
from ema_cli.storage.source import ByteSource

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT_BYTES = 8
# Element sizes of storages whose tensors are never read, but which lie between storages that are.
_OTHER_SIZES = {"QInt8": 1, "QUInt8": 1, "QInt32": 4, "QUInt4x2": 1, "QUInt2x4": 1, "complex32": 4}


def open_legacy(source: ByteSource, names: set[str] | None = None) -> TorchFile:
    """Read the pickles of a legacy file of torch's, and where its storages lie; add to `names` what they name.

    Raises:
        NoWeights: for a pickle that torch.save did not write.
        IncompleteCheckpoint: where the file ends before its storages do.
        CheckpointError: for what is damaged, or must not be read as weights.
    """
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> object:
        described = describe_storage(identifier)
        if isinstance(described, Storage) and storages.setdefault(described.key, described) != described:
            raise PickleError(f"it describes the storage '{described.key[:40]}' in two ways")
        return described

    try:
        magic, position = unpickle(source, names=names)
        if magic != MAGIC_NUMBER:
            raise NoWeights(
                "a pickle, but not one that torch.save wrote",
                subject=source.path,
                hint="average files of torch.save or safetensors",
            )
        protocol, position = unpickle(source, position, names=names)
        if protocol != _PROTOCOL:
            raise CheckpointError("a file of torch's of an unknown protocol", subject=source.path)
        system, position = unpickle(source, position, names=names)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError("its bytes are not little-endian, which alone is read", subject=source.path)
        root, position = unpickle(source, position, persistent, names=names)
        keys, position = unpickle(source, position, names=names)
    except PickleError as error:
        kind = IncompleteCheckpoint if isinstance(error, PickleEnds) else CheckpointError
        raise kind(f"the pickle in it cannot be read: {error}", subject=source.path) from error
    spans = _find_spans(source, keys, storages, position)
    return TorchFile(source, root, locate_in(spans))


def _find_spans(source: ByteSource, keys: Any, storages: dict[str, Storage], position: int) -> dict[str, Span]:
    """Return byte offset and size of each storage. They follow each other from byte `position` on, as `keys` do."""
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise CheckpointError("its list of storages does not fit its tensors", subject=source.path)
    if len(set(keys)) != len(keys):
        raise CheckpointError("its list of storages has one twice", subject=source.path)
    spans = {}
    for key in keys:
        storage = storages[key]
        size = storage.count * _element_size(source, storage)
        if position + _COUNT_BYTES + size > source.size:
            raise IncompleteCheckpoint(
                f"cut short: its storages take more than its {source.size} bytes",
                subject=source.path,
                hint=CUT_SHORT,
            )
        count = int.from_bytes(source.read(position, _COUNT_BYTES), "little", signed=True)
        if count != storage.count:
            raise CheckpointError(f"a storage of {storage.count} elements is stored with {count}", subject=source.path)
        spans[key] = (position + _COUNT_BYTES, size)
        position += _COUNT_BYTES + size
    if position != source.size:
        raise CheckpointError(f"{source.size - position} bytes follow the last storage", subject=source.path)
    return spans


def _element_size(source: ByteSource, storage: Storage) -> int:
    if storage.dtype is None:
        return 1
    dtype = TORCH_DTYPES.get(storage.dtype)
    size = dtype.itemsize if dtype else _OTHER_SIZES.get(storage.dtype.removesuffix("Storage"))
    if size is None:
        raise CheckpointError(f"a storage of an unknown type, {storage.dtype}", subject=source.path)
    return size
