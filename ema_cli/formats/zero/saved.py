"""The files of one save of DeepSpeed's: of which ranks they are, whether all are there, and of one save."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError, IncompleteCheckpoint
from ema_cli.formats.before import Before
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.folders import DEEPSPEED_MODEL, DEEPSPEED_OPTIMIZER, DEEPSPEED_PART
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.zero.tables import Partition, read_partition
from ema_cli.storage.location import location
from ema_cli.storage.side_by_side import side_by_side
from ema_cli.storage.source import InputFile
from ema_cli.text import first_few, plural

_ALIKE = ("global_steps", "global_samples", "ds_version")  # in the model states of all ranks
_MICS = "ds_config/zero_optimization/mics_shard_size"
_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class RankFile:
    """The file of one rank, and what was unpickled from it."""

    file: InputFile
    content: TorchFile

    @classmethod
    def open(cls, path: Path, before: Before) -> RankFile:
        """Open the file at a path, given what was read before.

        Raises:
            CheckpointError: for a file that is none of torch's, or holds no dict.
        """
        file = location(path).open()
        content = open_torch(file, before)
        if not isinstance(content.root, dict):
            raise CheckpointError("holds no dict, as DeepSpeed's files do", subject=path)
        return cls(file, content)


def open_model_states(
    folder: Path, names: Collection[str], before: Before, what: str = "model states"
) -> list[RankFile]:
    """Open the model states of all ranks, as stage 3 of ZeRO saves them, given what was read before.

    `what` they are is for messages.

    Raises:
        IncompleteCheckpoint: where those of a rank are missing.
        CheckpointError: where they are of different saves.
    """
    of_rank = _by_rank(folder, names, DEEPSPEED_PART)
    paths = [folder / name for name in of_rank.values()]
    opened = [call() for call in side_by_side(lambda path: RankFile.open(path, before), paths)]
    _check_save(folder, of_rank, opened, "dp_world_size", what)
    return opened


def open_grid(folder: Path, names: Collection[str], before: Before) -> list[list[RankFile]]:
    """Open the model states of stage 3 of ZeRO, of each rank that has its part of tensors those of all that share it.

    Most trainings have one such rank. Raise as `open_model_states`.
    """
    of_tensors: dict[int, list[str]] = {}
    for name in sorted(names):
        match = DEEPSPEED_PART.search(name)
        if match is not None:
            of_tensors.setdefault(int(match[2]), []).append(name)
    of_one = "model states with mp_rank_{:02}" if len(of_tensors) > 1 else "model states"
    grid = [open_model_states(folder, own, before, of_one.format(rank)) for rank, own in sorted(of_tensors.items())]
    firsts = {rank: own[0] for rank, own in sorted(of_tensors.items())}
    _check_save(folder, firsts, [row[0] for row in grid], "mp_world_size", "model states, by their mp_rank,")
    return grid


def open_tensor_ranks(folder: Path, names: Collection[str], before: Before) -> list[RankFile]:
    """Open the model states of all ranks that cut tensors between them, of one where none do; raise as before."""
    of_rank = _by_rank(folder, names, DEEPSPEED_MODEL)
    if not of_rank:
        raise IncompleteCheckpoint(
            "holds no model states (*_model_states.pt), without which nothing tells what is a parameter",
            subject=folder,
            hint="convert it again: ds_to_universal writes them last",
        )
    paths = [folder / name for name in of_rank.values()]
    opened = [call() for call in side_by_side(lambda path: RankFile.open(path, before), paths)]
    _check_save(folder, of_rank, opened, "mp_world_size")
    return opened


def _check_save(
    folder: Path, of_rank: Mapping[int, str], opened: Sequence[RankFile], count: str, what: str = "model states"
) -> None:
    """Check that the model states of all ranks, how many one of them says, are there, and of one save."""
    root = opened[0].content.root
    ranks, group = root.get(count), dig(root, _MICS)
    if count == "dp_world_size" and type(group) is int and group > 0:
        ranks = group  # with MiCS each group of so many ranks holds the whole model, and the first one saves it
    _check_ranks(folder, of_rank, ranks if type(ranks) is int else len(of_rank), what)
    for key in _ALIKE:
        values = [dig(states.content.root, key) for states in opened]
        _check_alike([states.file.path for states in opened], key, values)


def open_optimizer_states(
    folder: Path, names: Collection[str], before: Before
) -> tuple[list[InputFile], list[Partition]]:
    """Open the optimizer states of all ranks, given what was read before.

    Return the files, and what they hold of the weights.

    Raises:
        IncompleteCheckpoint: where those of a rank are missing.
        CheckpointError: where they are of different saves.
    """
    of_rank = _by_rank(folder, names, DEEPSPEED_OPTIMIZER)
    files, partitions = [], []
    for name in of_rank.values():
        opened = RankFile.open(folder / name, before)  # one at a time: of each only the partition is kept
        files.append(opened.file)
        partitions.append(read_partition(opened.content))
    if not partitions:
        raise IncompleteCheckpoint(
            "holds no optimizer states (*_optim_states.pt), in which ZeRO keeps the weights", subject=folder
        )
    paths = [partition.path for partition in partitions]
    _check_alike(paths, "number of ranks", [partition.ranks for partition in partitions])
    _check_alike(paths, "stage of ZeRO", [partition.stage for partition in partitions])
    _check_ranks(folder, of_rank, partitions[0].ranks, "optimizer states")
    _check_alike(paths, "step of the optimizer", [partition.step for partition in partitions])
    return files, partitions


def _by_rank(folder: Path, names: Collection[str], pattern: re.Pattern[str]) -> dict[int, str]:
    """Return the files that fit a pattern by their ranks, in order."""
    of_rank: dict[int, str] = {}
    for name in sorted(names):
        match = pattern.search(name)
        if match is not None:
            other = of_rank.setdefault(int(match[1]), name)
            if other != name:
                raise CheckpointError(
                    f"{other} and {name} are both of rank {match[1]}", subject=folder, hint=OTHER_SAVES
                )
    return dict(sorted(of_rank.items()))


def _check_ranks(folder: Path, of_rank: Mapping[int, str], ranks: int, what: str) -> None:
    """Check that there is a file of each rank, and of no other."""
    missing = [rank for rank in range(min(ranks, len(of_rank) + _MOST_SHOWN + 1)) if rank not in of_rank]
    beyond = next((rank for rank in of_rank if rank >= ranks), None)
    if beyond is not None:
        raise CheckpointError(
            f"is of rank {beyond}, but {of_rank[min(of_rank)]} says that there are {ranks}",
            subject=folder / of_rank[beyond],
            hint="a save with more ranks lies there, too: take the files that are not of this save away",
        )
    if missing:
        count = ranks - len(of_rank)
        shown = first_few([str(rank) for rank in missing], _MOST_SHOWN)
        raise IncompleteCheckpoint(f"holds no {what} of {plural(count, 'rank')} of {ranks}: {shown}", subject=folder)


def _check_alike(paths: list[Path], what: str, values: list[object]) -> None:
    """Check that the files of all ranks say the same of the save that they belong to."""
    for path, value in zip(paths, values, strict=True):
        if isinstance(value, int | float | str) and value != values[0]:
            raise CheckpointError(
                f"its {what} is {str(value)[:40]}, and that of {paths[0].name} is {str(values[0])[:40]}",
                subject=path,
                hint=OTHER_SAVES,
            )
