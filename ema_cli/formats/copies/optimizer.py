"""Leave an optimizer's state out of what is written over again: files, entries of a description, tensors of shards.

Nothing is executed for that. What cannot be left out so is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ema_cli.formats.copies.copied_file import Span
from ema_cli.formats.copies.description import CannotCut, cut_description
from ema_cli.formats.copies.frames import Cut
from ema_cli.formats.copies.left_out import LeftOut
from ema_cli.formats.copies.stored import NotWrittenBack
from ema_cli.formats.dcp.content import Metadata
from ema_cli.formats.dcp.metadata import read_metadata
from ema_cli.formats.dcp.pieces import Record, Records, StoredTensor
from ema_cli.formats.dcp.writer import metadata_text
from ema_cli.formats.pickles.unpickle import describe_storage, unpickle
from ema_cli.formats.pickles.values import Name, Storage
from ema_cli.formats.torch_save.file import is_zip
from ema_cli.formats.torch_save.zip_container import read_description
from ema_cli.formats.trainers.folders import DCP_METADATA
from ema_cli.storage.location import location
from ema_cli.storage.source import HeldBytes, InputFile

# As trainers call it: files and folders (transformers, accelerate, LeRobot, SpeechBrain; DeepSpeed's parts), entries of
# what is pickled (nearly all; fairseq's; of Composer within `state`), tensors of a distributed checkpoint.
_FILES = re.compile(
    r"(?:^|/)(?:optim(?:izer)?s?(?:_states?)?(?:_param_groups)?(?:_\d+)?(?:\.\w+)?|[^/]*_optim_states\.pt)(?:/|$)"
)
_ENTRIES = re.compile(r"(?:last_)?optim(?:izer)?s?(?:_states?)?(?:_dict)?")
# How each rank cut what it saved: Megatron saves its next checkpoint faster where it finds this. No loader needs it.
_PLANS = "all_local_plans"
_TENSORS = re.compile(r"(?:state\.|chained_\d+\.)?optim\w*[./]")


def leave_out_optimizer(originals: Collection[InputFile], copies: Mapping[str, InputFile]) -> LeftOut:
    """Return what is left out of a checkpoint, so that nothing of an optimizer's stays.

    Args:
        originals: its files with tensors of the model.
        copies: its other files, by name.

    Raises:
        NotWrittenBack: where something cannot be left out.
    """
    left = LeftOut()
    left.files = [name for name in copies if _FILES.search(name)]
    left.places = list(dict.fromkeys(_place(name) for name in left.files))
    metadata = next((file for name, file in copies.items() if name.rpartition("/")[2] == DCP_METADATA), None)
    if metadata is not None and metadata.path.parent in {file.path.parent for file in originals}:
        _cut_shards(left, metadata, next(name for name, file in copies.items() if file is metadata))
        return left
    for file in originals:
        if not file.path.name.lower().endswith(".safetensors"):
            _cut_archive(left, file)
    return left


def is_optimizer_tensor(name: str) -> bool:
    """Return whether a tensor of a distributed checkpoint is an optimizer's, by its name."""
    return _TENSORS.match(name) is not None


def _place(name: str) -> str:
    """Return the part of a name that says whose it is."""
    match = _FILES.search(name)
    return name[: match.end()].rstrip("/") if match is not None else name


def _cut_archive(left: LeftOut, file: InputFile) -> None:
    """Leave entries out of an archive of torch's, and the storages that only they name."""
    if not is_zip(file):
        raise NotWrittenBack("is of torch's old format, out of which nothing can be left")
    whole = read_description(file)
    root, _ = unpickle(HeldBytes(file.path, whole))
    # fastai's `opt` is a dict; what other trainers have there are their options.
    more = {("opt",)} if isinstance(root, dict) and isinstance(root.get("opt"), dict) else set()
    try:
        description, paths = cut_description(whole, lambda path: path in more or _is_optimizer_s(path))
    except CannotCut as error:
        raise NotWrittenBack(f"nothing can be left out of {file.path.name}: {error}") from error
    if not paths:
        return
    keys: set[str] = set()

    def keep(identifier: object) -> Storage | Name:
        storage = describe_storage(identifier)
        if isinstance(storage, Storage):
            keys.add(storage.key)
        return storage

    unpickle(HeldBytes(file.path, description), persistent=keep)
    left.cuts[file.path] = Cut(description, frozenset(keys))
    left.places += ["/".join(path) for path in paths]


def _is_optimizer_s(path: tuple[str, ...]) -> bool:
    return path[:-1] in ((), ("state",)) and _ENTRIES.fullmatch(path[-1]) is not None


def _cut_shards(left: LeftOut, file: InputFile, name: str) -> None:
    """Leave tensors, and values that are none, out of a folder of torch.distributed.checkpoint's."""
    metadata = read_metadata(file)
    if metadata.more not in ("", _PLANS):
        raise NotWrittenBack(f"its {DCP_METADATA} says more than torch's own, {metadata.more}, and is not written anew")
    tensors = {tensor: metadata.tensor(tensor) for tensor in metadata.tensors}
    gone = [tensor for tensor in (*tensors, *metadata.items) if is_optimizer_tensor(tensor)]
    if not gone:
        return
    left.places += dict.fromkeys(match[0][:-1] for tensor in gone if (match := _TENSORS.match(tensor)))
    records = [record for tensor in gone if tensor in tensors for record in tensors[tensor].records]
    records += [metadata.items[tensor] for tensor in gone if tensor in metadata.items]
    folder = name[: name.rfind("/") + 1]
    every = {record.file for tensor in tensors.values() for record in tensor.records}
    kept = _kept(file.path.parent, records, every | {record.file for record in metadata.items.values()})
    for shard, spans in kept.items():
        if spans:
            left.cuts[file.path.parent / shard] = Cut(kept=spans)
        else:
            left.files.append(f"{folder}{shard}")
    left.texts[name] = _metadata_without(metadata, tensors, set(gone), kept)


def _kept(folder: Path, records: Collection[Record], shards: Collection[str]) -> dict[str, list[Span]]:
    """Return the ranges of each shard that stay when records are left out."""
    kept: dict[str, list[Span]] = {}
    for shard in sorted(shards):
        size = location(folder / shard).info().size
        gone = sorted((record.start, record.start + record.size) for record in records if record.file == shard)
        borders = [0, *(byte for span in gone for byte in span), size]
        pairs = zip(borders[::2], borders[1::2], strict=True)
        kept[shard] = [(begin, end) for begin, end in pairs if begin < end]
    return kept


def _metadata_without(
    metadata: Metadata, tensors: Mapping[str, StoredTensor], gone: Collection[str], kept: Mapping[str, list[Span]]
) -> bytes:
    """Return `.metadata` of what stays, each record at its new place."""

    def moved(record: Record) -> Record:
        before = sum(min(end, record.start) - begin for begin, end in kept[record.file] if begin < record.start)
        return Record(record.file, before, record.size)

    stay = {
        name: replace(tensor, records=Records.of(map(moved, tensor.records)))
        for name, tensor in tensors.items()
        if name not in gone
    }
    items = {name: moved(record) for name, record in metadata.items.items() if name not in gone}
    return metadata_text(stay, items, {name: path for name, path in metadata.paths.items() if name not in gone})
