"""OLMo's local sharded checkpoints: `model/rank0.pt` and so on, what FSDP flattened, beside `optim/` and `train/`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.formats.beginning import names_flat
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.folders import OLMO_STATE, OLMO_TRAIN
from ema_cli.formats.trainers.names import names_in
from ema_cli.formats.trainers.olmo import olmo_progress
from ema_cli.storage.location import location

_MODEL = "model"
_OF_RANK = re.compile(r"^rank(0|[1-9][0-9]{0,5})\.pt$")
_MAX_RANKS = 1 << 20


def matches(path: Path) -> bool:
    """Return whether this is a checkpoint, its folder with the model, or the file of one rank in that."""
    return _find(path) is not None


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read what all ranks say of their parts, and the clocks in the trainer's state.

    Raises:
        IncompleteCheckpoint: where the files of ranks are missing.
        CheckpointError: for what cannot be read.
    """
    from ema_cli.formats.ranks.assembly import missing_ranks  # which no other format needs
    from ema_cli.formats.ranks.checkpoint import open_flat
    from ema_cli.formats.trainers.nested import dig

    model = _find(path) or path
    files = {int(match[1]): model / match[0] for match in map(_OF_RANK.match, names_in(model)) if match}
    around = location(model.parent / OLMO_TRAIN / OLMO_STATE)
    train = around.open() if model.name == _MODEL and around.info().is_file else None
    state = None if train is None else open_torch(train).root
    said = dig(state, "world_size")
    ranks = said if type(said) is int and 0 < said <= _MAX_RANKS else max(files) + 1
    missing = [rank for rank in range(ranks) if rank not in files]
    if missing:
        raise missing_ranks(missing, ranks).about(model)
    checkpoint = open_flat(path, {rank: files[rank] for rank in range(ranks)}, options)
    return dataclasses.replace(
        checkpoint,
        files=(*checkpoint.files, *([] if train is None else [train])),
        trainer="OLMo",
        progress=olmo_progress(state),
        resumable=train is not None,
    )


def _find(path: Path) -> Path | None:
    """Return the folder with the files of ranks; None where there is none."""
    if not location(path).info().is_folder:
        return path.parent if _OF_RANK.match(path.name) and names_flat(path) else None
    for folder in (path / _MODEL, path):
        first = min(filter(_OF_RANK.match, names_in(folder)), default=None)
        if first is not None and names_flat(folder / first):
            return folder
    return None


READER = Reader(matches, open_checkpoint)
