"""OLMo's local sharded checkpoints: `model/rank0.pt` and so on, what FSDP flattened, beside `optim/` and `train/`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Progress
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError
from ema_cli.formats.beginning import names_flat
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.folders import OLMO_STATE, OLMO_TRAIN
from ema_cli.formats.trainers.olmo import olmo_progress
from ema_cli.storage.location import location, names_in
from ema_cli.storage.side_by_side import side_by_side
from ema_cli.storage.source import InputFile

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
        CheckpointError: for what cannot be read, and for files of two saves.
    """
    from ema_cli.formats.ranks.assembly import missing_ranks  # which no other format needs
    from ema_cli.formats.ranks.checkpoint import open_flat

    model = _find(path) or path
    files = {int(match[1]): model / match[0] for match in map(_OF_RANK.match, names_in(model)) if match}
    states = _states(model, files)
    train = states.get(0)
    ranks = (None if train is None else train.ranks) or max(files) + 1
    if train is not None:
        _check_one_save(train, states.values(), files, ranks)
    missing = [rank for rank in range(ranks) if rank not in files]
    if missing:
        raise missing_ranks(missing, ranks).about(model)
    checkpoint = open_flat(path, {rank: files[rank] for rank in range(ranks)}, options)
    return dataclasses.replace(
        checkpoint,
        files=(*checkpoint.files, *([] if train is None else [train.file])),
        trainer="OLMo",
        progress=Progress() if train is None else train.progress,
        resumable=train is not None,
    )


@dataclass(frozen=True, slots=True)
class _State:
    """The trainer's state as a rank has saved it: its file, clocks, and how many ranks there are, if it says that."""

    file: InputFile
    progress: Progress
    ranks: int | None


def _states(model: Path, files: Mapping[int, Path]) -> dict[int, _State]:
    """Return the states of the ranks, as far as these are there."""
    if model.name != _MODEL:
        return {}
    folder = model.parent / OLMO_TRAIN
    names = set(names_in(folder))
    there = [rank for rank in sorted({0, *files}) if f"rank{rank}.pt" in names]
    read = side_by_side(_state, [folder / f"rank{rank}.pt" for rank in there])
    return {rank: call() for rank, call in zip(there, read, strict=True)}


def _state(path: Path) -> _State:
    file = location(path).open()
    root = open_torch(file).root
    ranks = root.get("world_size") if isinstance(root, dict) else None
    return _State(file, olmo_progress(root), ranks if type(ranks) is int and 0 < ranks <= _MAX_RANKS else None)


def _check_one_save(first: _State, states: Iterable[_State], files: Mapping[int, Path], ranks: int) -> None:
    """Check that all ranks saved at one moment, and that there is a file of none but them."""
    beyond = next((rank for rank in sorted(files) if rank >= ranks), None)
    if beyond is not None:
        raise CheckpointError(
            f"is of rank {beyond}, but {OLMO_TRAIN}/{OLMO_STATE} says that there are {ranks}",
            subject=files[beyond],
            hint="a save with more ranks lies there, too: take the files that are not of this save away",
        )
    for state in states:
        for unit, clock in state.progress.clocks.items():
            other = first.progress.clocks.get(unit, clock)
            if other.value != clock.value:
                fact = f"was saved at {clock.value}{unit}, and {OLMO_STATE} at {other.value}{unit}"
                raise CheckpointError(fact, subject=state.file.path, hint=OTHER_SAVES)
        if state.ranks not in (None, ranks):
            fact = f"was saved by {state.ranks} ranks, and {OLMO_STATE} by {ranks}"
            raise CheckpointError(fact, subject=state.file.path, hint=OTHER_SAVES)


def _find(path: Path) -> Path | None:
    """Return the folder with the files of ranks; None where there is none."""
    if not location(path).info().is_folder:
        return path.parent if _OF_RANK.match(path.name) and names_flat(path) else None
    for folder in (path / _MODEL, path):
        names = sorted(filter(_OF_RANK.match, names_in(folder)))
        # One that is empty or cut does not show what the others are.
        if any(names_flat(folder / name) for name in dict.fromkeys((*names[:2], *names[-2:]))):
            return folder
    return None


READER = Reader(matches, open_checkpoint)
