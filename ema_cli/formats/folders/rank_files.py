"""The model in a folder with a safetensors file for each rank, and what torch loses where it puts them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from itertools import accumulate
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Tensors
from ema_cli.errors import OTHER_SAVES, CheckpointError, EmaError, IncompleteCheckpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.safetensors.header import open_file
from ema_cli.formats.safetensors.tensors import SafetensorsTensors
from ema_cli.formats.shards import ReplacedTensors, ShardedTensors
from ema_cli.formats.trainers.folders import RANK_SHARD
from ema_cli.storage.location import names_in
from ema_cli.storage.ranges import read_ranges
from ema_cli.storage.side_by_side import side_by_side
from ema_cli.text import plural, some


def open_ranks(path: Path, names: Collection[str], options: ReadOptions) -> Checkpoint:
    """Open the shards of all ranks, which have no index, as one model: whole tensors, and pieces by their offsets."""
    shards = {name: match for name in sorted(names) if (match := RANK_SHARD.search(name))}
    numbers = {int(match[3]) for match in shards.values()}
    count = max(int(match[4]) for match in shards.values())
    missing = min(set(range(1, count + 1)) - numbers, default=None)
    if missing is not None:
        raise IncompleteCheckpoint(f"holds no shard {missing} of {count}", subject=path)
    from ema_cli.formats.pieces.rank_shards import open_pieces  # which few runs need

    model = open_pieces(path, list(shards), options.before)
    whole = safetensors_file.from_tensors(path, model.tensors, model.metadata, model.files, options)
    ranks = len({match[1] for match in shards.values()})
    note = f"put together of the files of {plural(ranks, 'rank')}; no file says whether there were more"
    return dataclasses.replace(whole, notes=(*whole.notes, note))


def with_scalars(whole: Checkpoint, pieces: Path, options: ReadOptions) -> Checkpoint:
    """Return a model that was put together, with the numbers that it lacks from the files of ranks that it was made of.

    Where a tensor has no dimensions, torch 2.13.0 leaves zeros: findings/torch-consolidation-of-scalars.sh. All else is
    taken as it was put together: the files of some ranks may be gone by now.

    Raises:
        CheckpointError: where such a tensor is 0, and a file that may hold its number cannot be read, or files differ.
    """
    scalars = [name for name, spec in whole.tensors.specs.items() if not spec.shape]
    zeros = [name for name, number in _numbers(whole.tensors, scalars).items() if not any(number)]
    files = [pieces / name for name in sorted(names_in(pieces)) if RANK_SHARD.search(name)] if zeros else []
    if not files:
        return whole
    found = _find_scalars(zeros, files, options)
    lost = {name: rank for name, (rank, number) in found.items() if any(number)}
    unknown = [name for name in zeros if name not in found]
    why = "torch loses tensors without dimensions: 0 in what it put together"
    warnings = [
        *([f"{why}, and so taken from the files of ranks: {some(sorted(lost))}"] if lost else []),
        *([f"{why}, and in no file of a rank that is here: {some(sorted(unknown))}"] if unknown else []),
    ]
    whole = dataclasses.replace(whole, warnings=(*whole.warnings, *warnings))
    if not lost:
        return whole
    ranks = {rank.file.path: rank for rank in lost.values()}
    numbers = {path: number for number, path in enumerate(ranks)}
    taken = ShardedTensors(
        {name: rank.specs[name] for name, rank in lost.items()},
        {name: numbers[rank.file.path] for name, rank in lost.items()},
        list(ranks.values()),
    )
    return dataclasses.replace(
        whole,
        tensors=ReplacedTensors.of(whole.tensors, taken),
        files=(*whole.files, *(rank.file for rank in ranks.values())),
    )


def _find_scalars(
    names: Sequence[str], files: Sequence[Path], options: ReadOptions
) -> dict[str, tuple[SafetensorsTensors, bytes]]:
    """Return the file of a rank that holds each of these tensors, where one does, and its number there.

    Raises:
        CheckpointError: as `with_scalars`.
    """
    found: dict[str, tuple[SafetensorsTensors, bytes]] = {}
    for opened in side_by_side(lambda file: open_file(file, options.before), files):
        try:
            rank = opened()
        except EmaError as error:
            fact = f"{error.fact}; it may hold '{names[0]}', which is 0 in what was put together"
            hint = error.hint or "bring it back as it was saved, or, where 0 is right, move the files of ranks away"
            raise type(error)(fact, subject=error.subject, hint=hint) from error
        held = [name for name in names if name in rank.specs and not rank.specs[name].shape]
        for name, number in _numbers(rank, held).items():
            first, before = found.setdefault(name, (rank, number))
            if number != before:
                raise CheckpointError(
                    f"'{name}' is another number than in {first.file.path.name}",
                    subject=rank.file.path,
                    hint=OTHER_SAVES,
                )
    return found


def _numbers(tensors: Tensors, names: Sequence[str]) -> dict[str, bytes]:
    """Return the numbers in tensors without dimensions, as they are stored. In a store all are asked for at once."""
    sizes = [tensors.specs[name].nbytes for name in names]
    out = memoryview(bytearray(sum(sizes)))
    parts = [out[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]
    runs = [tensors.runs(name, 0, size) for name, size in zip(names, sizes, strict=True)]
    if None in runs:
        for name, part in zip(names, parts, strict=True):
            tensors.read_into(name, 0, part)
    else:
        read_ranges([run for own in runs for run in own or ()], out)
    return dict(zip(names, map(bytes, parts), strict=True))
