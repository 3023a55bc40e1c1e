"""A checkpoint that is a folder of torch.distributed.checkpoint: find it where trainers put it, and see if it is whole.

What is in it, `checkpoint.py` reads.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import Averages, Checkpoint
from ema_cli.errors import IncompleteCheckpoint, NoSuchWeights, Unfinished
from ema_cli.formats.mark import LIKE_INPUT, MADE_HERE, MAX_MARK_BYTES, RECORD, parse_mark
from ema_cli.formats.options import ReadOptions, one_model_error, several_models_error
from ema_cli.formats.reader import Reader
from ema_cli.formats.trainers.choice import settle_averages
from ema_cli.formats.trainers.folders import (
    DCP_FOLDERS,
    DCP_META,
    DCP_METADATA,
    MEGATRON_COMMON,
    MEGATRON_MARK,
    OLMO_FOLDER,
    OLMO_MARK,
    OLMO_MERGED,
    OLMO_TRAIN,
    UNFINISHED_MARK,
)
from ema_cli.formats.trainers.latest import check_latest
from ema_cli.storage.location import location, names_in
from ema_cli.storage.small_file import read_small_file

_OLMO_AVERAGES = "OLMo-core's ModelMergeCallback saved it: a model without a trainer's state, called {name}"


def matches(path: Path) -> bool:
    """Return whether the folder, or one in it where trainers put it, is one of torch.distributed.checkpoint."""
    return bool(_find_folders(path))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read `.metadata`, find the model in it, and check that the files are there.

    Raises:
        IncompleteCheckpoint: where `.metadata`, which is written last, or a shard is missing.
        NoWeights: where no tensors are the model's.
        CheckpointError: for what is damaged, leads out of the folder, or is compressed or encrypted.
    """
    beside = names_in(path)
    mark = parse_mark(read_small_file(path / RECORD, MAX_MARK_BYTES)) if RECORD in beside else None
    is_own = mark is not None and bool(mark) and LIKE_INPUT not in mark
    # A folder of ours is one set of weights, and no key: options that are meant for others do not apply.
    reading = (
        replace(options, key=None, weights=None, component=None, clock_key=(), masters=False) if is_own else options
    )
    folder = _choose_folder(path, reading)
    _check_complete(path, folder)
    from ema_cli.formats.dcp.checkpoint import open_folder  # which no other format needs

    averages = _OLMO_AVERAGES.format(name=path.name) if _is_olmo_merged(path, folder, beside) else None
    try:
        checkpoint = open_folder(path, folder, reading, averages, is_own=is_own)
    except NoSuchWeights:
        if mark is None:
            raise
        # An average of ours that was written without the optimizer is passed over in its run all the same.
        checkpoint = open_folder(path, folder, replace(reading, masters=False), averages, is_own=is_own)
    if mark is None:
        return checkpoint
    return settle_averages(replace(checkpoint, mark=mark, averages=Averages(MADE_HERE)), options)


def _choose_folder(path: Path, options: ReadOptions) -> Path:
    """Return the folder with the shards of the model, which the user names where there are several."""
    folders = _find_folders(path)
    if len(folders) == 1:
        if options.component not in (None, folders[0].name):
            raise one_model_error(path)
        return folders[0]
    chosen = next((folder for folder in folders if folder.name == options.component), None)
    if chosen is None:
        names = [folder.name for folder in folders]
        raise several_models_error(path, names, names[0])
    return chosen


def _find_folders(path: Path) -> list[Path]:
    """Return the folders with shards: this one, or those in it where some trainers put them."""
    names = sorted(names_in(path))
    if _has_shards(names):
        return [path]
    inner = [path / name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in DCP_FOLDERS)]
    return [folder for folder in inner if _has_shards(names_in(folder))]


def _has_shards(names: Collection[str]) -> bool:
    return DCP_METADATA in names or any(name.endswith(".distcp") for name in names)


def _is_olmo_merged(path: Path, folder: Path, beside: Collection[str]) -> bool:
    """Return whether OLMo-core's ModelMergeCallback saved a model alone: stepN-merged, or what the user calls it.

    The state of the trainer, which a checkpoint has first, is not there, nor is what it has last.
    """
    is_alone = folder != path and folder.name == OLMO_FOLDER and OLMO_MARK not in beside and OLMO_TRAIN not in beside
    return is_alone and OLMO_MERGED.search(path.name) is not None


def _check_complete(path: Path, folder: Path) -> None:
    """Raise an IncompleteCheckpoint where what the trainer writes last is not there yet."""
    beside, names = names_in(path), names_in(folder)
    is_merged = _is_olmo_merged(path, folder, beside)
    missing = None
    if DCP_METADATA not in names:
        missing = f"has no {DCP_METADATA}"
    elif path.name.endswith(".ckpt") and DCP_META not in names:
        missing = f"has no {DCP_META}"
    elif folder.name == OLMO_FOLDER and folder != path and OLMO_MARK not in beside and not is_merged:
        missing = f"has no {OLMO_MARK}"
    elif MEGATRON_COMMON in names and MEGATRON_MARK not in names:
        missing = f"has no {MEGATRON_MARK}"
    elif location(f"{path}{UNFINISHED_MARK}").info().exists:
        raise Unfinished(f"is marked as unfinished, by {path.name}{UNFINISHED_MARK} beside it", subject=path)
    if missing:
        raise IncompleteCheckpoint(f"{missing}, which is written last", subject=path)
    check_latest(path)


READER = Reader(matches, open_checkpoint, takes_component=True, takes_masters=True, files=False)
