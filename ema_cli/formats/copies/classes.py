"""Which classes and functions a file names that loading it imports and calls, so that their code runs.

Not counted are those of tensors and plain containers, which `torch.load(weights_only=True)` takes, and the dataclasses
in the `.metadata` of torch.distributed.checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError, Unreadable
from ema_cli.formats.dcp.metadata import read_metadata
from ema_cli.formats.pickles.unpickle import names_in_pickle
from ema_cli.formats.pickles.values import KNOWN_CALLS, PickleError
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.formats.torch_save.legacy_container import MAGIC_NUMBER
from ema_cli.formats.torch_save.zip_directory import data_offset, is_description, read_directory
from ema_cli.formats.trainers.folders import DCP_METADATA
from ema_cli.storage.location import location
from ema_cli.storage.source import ByteSource, FileRegion, InputFile

DCP_SHARD = ".distcp"

_NONE: Mapping[Path, Collection[str]] = MappingProxyType({})

_LEGACY_PICKLES = 5  # a magic number, a protocol number, facts about the system, the description, the storages
_STORAGE = re.compile(r"torch\.(cuda\.)?[A-Z]\w*Storage|torch\.storage\.(Untyped|Typed)Storage")
_PLAIN = {
    *KNOWN_CALLS,
    *(f"torch.{dtype}" for dtype in TORCH_DTYPES),
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.serialization._get_layout",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "__builtin__.dict",
    "__builtin__.list",
    "__builtin__.tuple",
    *(
        f"torch.distributed.checkpoint.metadata.{name}"
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
}


def classes_in(files: Iterable[ByteSource], described: Mapping[Path, Collection[str]] = _NONE) -> list[str]:
    """Return the names of the classes and functions whose code runs when one of the files is loaded, in order.

    A pickle that cannot be read may name anything, and is listed as such.

    Args:
        files: the files.
        described: those names in descriptions by torch that were read before, by the path of the file.
    """
    names = set().union(*(_names_in(file, described.get(file.path)) for file in files))
    return sorted(name for name in names if name not in _PLAIN and not _STORAGE.fullmatch(name))


def _names_in(file: ByteSource, described: Collection[str] | None) -> set[str]:
    """Return all names in the pickles of a file; none where it holds no pickles.

    Of a folder of torch.distributed.checkpoint they are those of `.metadata`, and of the values that are no tensors:
    tensors are loaded with weights_only.
    """
    try:
        if file.path.name == DCP_METADATA:
            items = _items(location(file.path).open())
            return names_in_pickle(file)[0].union(*map(_names_in_source, items))
        return set() if file.path.name.endswith(DCP_SHARD) else _names_in_source(file, described)
    except Unreadable:
        raise
    except (PickleError, CheckpointError):
        return {f"whatever {file.path.name} names, which cannot be read"}


def _items(metadata: InputFile) -> Iterator[FileRegion]:
    """Yield the values that are no tensors in the shards beside a `.metadata`."""
    files: dict[str, InputFile] = {}
    for record in read_metadata(metadata).items.values():
        if record.file not in files:
            files[record.file] = location(metadata.path.parent / record.file).open()
        yield FileRegion(files[record.file], record.start, record.size)


def _names_in_source(file: ByteSource, described: Collection[str] | None = None) -> set[str]:
    names = set(described or ())
    if torch_file.is_zip(file):
        records = [entry for entry in read_directory(file).values() if entry.name.endswith("data.pkl")]
        if described is not None:  # which an archive has in its own folder
            records = [entry for entry in records if not is_description(entry.name)]
        regions = [FileRegion(file, data_offset(file, entry), entry.size) for entry in records]
        return names.union(*(names_in_pickle(region)[0] for region in regions))
    if described is not None or not torch_file.is_pickle(file):
        return names
    names, value, position = names_in_pickle(file)
    for _ in range(_LEGACY_PICKLES - 1 if value == MAGIC_NUMBER else 0):
        more, _, position = names_in_pickle(file, position)
        names |= more
    return names
