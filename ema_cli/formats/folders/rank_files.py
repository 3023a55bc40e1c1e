"""The model in a folder with a safetensors file for each rank, and what torch loses where it puts them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import IncompleteCheckpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.trainers.folders import RANK_SHARD
from ema_cli.formats.trainers.names import names_in
from ema_cli.text import plural


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
    """Return a model that was put together, with the tensors of its pieces where it lacks numbers that these have.

    Where a tensor has no dimensions, torch 2.13.0 leaves zeros: findings/torch-consolidation-of-scalars.sh.
    """
    zeros = [name for name, spec in whole.tensors.specs.items() if not spec.shape and _is_zero(whole, name)]
    names = names_in(pieces) if zeros else set()
    if not any(map(RANK_SHARD.search, names)):
        return whole
    try:
        found = open_ranks(pieces, names, options)
    except IncompleteCheckpoint:
        return whole
    lost = [name for name in zeros if name in found.tensors.specs and not _is_zero(found, name)]
    if not lost:
        return whole
    more = f" and {len(lost) - 1} more" if lost[1:] else ""
    warning = (
        f"taken from the files of ranks: '{lost[0]}'{more} is 0 in what was put together of them, and not in them; "
        "torch loses tensors without dimensions"
    )
    return dataclasses.replace(
        whole,
        tensors=found.tensors,
        files=found.files,
        notes=(*whole.notes, *found.notes),
        warnings=(*whole.warnings, warning),
    )


def _is_zero(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a tensor without dimensions is zero."""
    number = bytearray(checkpoint.tensors.specs[name].nbytes)
    checkpoint.tensors.read_into(name, 0, memoryview(number))
    return not any(number)
