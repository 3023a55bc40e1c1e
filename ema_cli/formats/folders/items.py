"""A folder with a file for each item of a training and each rank, ITEM_RANK.pt, as torch_checkpointing writes it.

Its `metadata.pkl` says how many ranks there are; not every save has one. The shares of tensors describe themselves.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Progress
from ema_cli.errors import CheckpointError
from ema_cli.formats.beginning import names_shares
from ema_cli.formats.options import ReadOptions, no_component_error, several_models_error
from ema_cli.formats.reader import Reader
from ema_cli.formats.trainers.folders import ITEM_METADATA
from ema_cli.formats.trainers.names import is_weights_name
from ema_cli.storage.location import location, names_in
from ema_cli.storage.source import InputFile
from ema_cli.text import lazy_pattern

_FILE = lazy_pattern(r"^(\w+)_(0|[1-9]\d{0,5})\.pt$", re.ASCII)
_MODEL = "model"
_MAX_CLOCK_BYTES = 1 << 16  # of an item in which clocks are looked for
_MAX_CLOCKS = 16

Items = Mapping[str, Mapping[int, Path]]
"""The file of each rank, by item."""


def matches(path: Path) -> bool:
    """Return whether the folder is known by its metadata, or has several items, with a model of one rank or in shares.

    Without metadata its files could as well be numbered by epochs: what is cut between ranks tells. Where all numbers
    are 0, the folder is one checkpoint in either case.
    """
    return holds_items(path, names_in(path))


def holds_items(path: Path, names: Collection[str]) -> bool:
    """Return the same of a folder in which these names are."""
    items = _items(path, names)
    own = items.get(_MODEL, {})
    if ITEM_METADATA in names:
        return bool(own) or (bool(items) and not any(name.endswith(".safetensors") for name in names))
    if len(items) < 2 or not own:
        return False
    ranks = sorted(own)
    # One that is empty or cut does not show what the others are.
    shown = dict.fromkeys((*ranks[:2], *ranks[-2:]))
    return all(files.keys() == {0} for files in items.values()) or any(names_shares(own[rank]) for rank in shown)


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the model's files of all ranks, and the clocks in the items beside them.

    Raises:
        IncompleteCheckpoint: where the files of ranks are missing.
        UsageError: where the item of the model is not said, or not there.
        CheckpointError: for what cannot be read.
    """
    from ema_cli.formats.ranks.assembly import missing_ranks  # which no other format needs
    from ema_cli.formats.ranks.checkpoint import open_ranks
    from ema_cli.formats.ranks.items import count_ranks

    names = names_in(path)
    items = _items(path, names)
    item = options.component or _MODEL
    if item not in items:
        models = [name for name, files in items.items() if is_weights_name(files[min(files)].name)]
        if options.component is not None:
            raise no_component_error(path, item, models)
        raise several_models_error(path, models or list(items), min(models or items))
    saved = {rank for files in items.values() for rank in files}
    ranks = count_ranks(path / ITEM_METADATA, item) if ITEM_METADATA in names else max(saved) + 1
    missing = [rank for rank in range(ranks) if rank not in items[item]]
    if missing:
        raise missing_ranks(missing, ranks).about(path)
    files = {rank: items[item][rank] for rank in range(ranks)}
    checkpoint = open_ranks(path, files, dataclasses.replace(options, component=None))
    progress, beside = _progress(items, item, 0)
    for rank in range(1, ranks):
        theirs, _ = _progress({name: items[name] for name in beside if rank in items[name]}, item, rank)
        _check_moment(path, rank, theirs, progress)
    return dataclasses.replace(
        checkpoint,
        trainer=checkpoint.trainer or "torch_checkpointing",
        progress=progress if progress.clocks else checkpoint.progress,
        files=(*checkpoint.files, *beside.values()),
        resumable=any(not is_weights_name(files[min(files)].name) for files in items.values()),
    )


def _items(path: Path, names: Collection[str]) -> Items:
    items: dict[str, dict[int, Path]] = {}
    for match in filter(None, map(_FILE.match, sorted(names))):
        items.setdefault(match[1], {})[int(match[2])] = path / match[0]
    return items


def _progress(items: Items, model: str, rank: int) -> tuple[Progress, dict[str, InputFile]]:
    """Return the clocks in the small items of one rank, and the files that have any, by item."""
    from ema_cli.formats.ranks.items import clocks_in

    clocks, files = Progress(), dict[str, InputFile]()
    for item in sorted(items)[:_MAX_CLOCKS]:
        place = location(items[item].get(rank, Path()))
        info = place.info()
        if item == model or not info.is_file or info.size > _MAX_CLOCK_BYTES:
            continue
        file = place.open()
        found = clocks_in(item, file)
        if found.clocks:
            files[item] = file
            clocks = dataclasses.replace(found, clocks={**found.clocks, **clocks.clocks})
    return clocks, files


def _check_moment(path: Path, rank: int, theirs: Progress, progress: Progress) -> None:
    for unit, clock in theirs.clocks.items():
        if clock.value != progress.clocks[unit].value:
            raise CheckpointError(
                f"rank {rank} was saved at {clock.value}{unit}, and rank 0 at {progress.clocks[unit].value}{unit}",
                subject=path,
                hint="the files are of different saves: bring whole copies of one",
            )


READER = Reader(matches, open_checkpoint, takes_component=True, files=False)
