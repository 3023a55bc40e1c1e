"""A model in several files that differ in one small number: put together where each tensor is whole in one of them.

The number is in the names of the files, `rank0.pt`, or in those of folders around them, `tp_00/model.pt`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePath

from ema_cli.checkpoint import Checkpoint, Pretrained
from ema_cli.errors import OTHER_SAVES, CheckpointError, CutBetweenRanks, EmaError, IncompleteCheckpoint, NoWeights
from ema_cli.formats.beginning import names_shares
from ema_cli.formats.folders import refused, several
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.samples import begin_alike
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.formats.trainers.latest import check_latest
from ema_cli.formats.trainers.names import BATCH_STATISTICS, is_unfinished_name, is_weights_name, name_clocks
from ema_cli.formats.trainers.part_names import CUTTING, RANK_CONFIG, RANK_FILES, converter, is_called, parts_of
from ema_cli.storage.location import location, names_in
from ema_cli.storage.names import plain
from ema_cli.storage.replicas import Replica, Replicas, differing_buffers
from ema_cli.storage.side_by_side import side_by_side
from ema_cli.text import first_few

_NUMBER = re.compile(r"[0-9]+")
_TORCH = Reader(torch_file.matches, torch_file.open_part)
_READERS = (several.READER, refused.READER, safetensors_file.READER, _TORCH)
_MAX_FOLDERS = 2  # around a file that may be those of ranks: rank0/step-10/model.pt


def matches(path: Path) -> bool:
    """Return whether a file is a part by its name, or a folder holds nothing but files with different tensors."""
    return bool(_all_parts(path))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of all parts, and put them together.

    Raises:
        IncompleteCheckpoint: where a part is missing.
        CheckpointError: where tensors are cut, and so are in several parts.
    """
    return _open(path, _all_parts(path), options)


def _open(path: Path, paths: Sequence[Path], options: ReadOptions) -> Checkpoint:
    """Return the parts at some paths as the checkpoint at `path`; raise as `open_checkpoint`."""
    missing = [part for part in paths if not location(part).info().exists]
    if missing:
        empty = next((part.parent for part in missing if _is_empty_folder(part.parent)), None)
        hint = None if empty is None else f"if that rank saved nothing on purpose, take its empty folder away: {empty}"
        raise IncompleteCheckpoint(_missing(missing, paths), subject=path, hint=hint)
    is_shared = names_shares(paths[0])
    try:
        parts = [] if is_shared else _open_parts(paths, options)
    except CutBetweenRanks:
        is_shared = True
    if is_shared:
        from ema_cli.formats.ranks.checkpoint import open_ranks  # which no other format needs

        return _of_trainer(open_ranks(path, dict(enumerate(paths)), options), paths)
    first = parts[0]
    if len(parts) == 1:
        return _of_trainer(dataclasses.replace(first, name=path.name, path=path), paths)
    part_of: dict[str, int] = {}
    for number, part in enumerate(parts):
        twice = next((name for name in part.tensors.specs if name in part_of), None)
        if twice is not None:
            differing = _check_copies(parts, twice, options)
            note = f"the first of {len(parts)} files by ranks, which hold the same as far as samples show"
            return dataclasses.replace(
                first,
                name=path.name,
                path=path,
                files=tuple(file for part in parts for file in part.files),
                warnings=(*first.warnings, *([differing_buffers(differing)] if differing else [])),
                notes=(*first.notes, note),
                replicas=partial(_replicas, paths, options),
            )
        part_of.update(dict.fromkeys(part.tensors.specs, number))
    specs = {name: spec for part in parts for name, spec in part.tensors.specs.items()}
    return dataclasses.replace(
        next((part for part in parts if part.progress.clocks), first),
        name=path.name,
        path=path,
        tensors=ShardedTensors(specs, part_of, [part.tensors for part in parts]),
        files=tuple(file for part in parts for file in part.files),
        averages=next((part.averages for part in parts if part.averages), None),
        warnings=tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
        notes=(
            *dict.fromkeys(note for part in parts for note in part.notes),
            f"put together of {len(parts)} files, which differ in a number",
        ),
        left_out=tuple(name for part in parts for name in part.left_out),
    )


def _missing(missing: Sequence[Path], paths: Sequence[Path]) -> str:
    """Say which parts are missing, by name or, where there are several, by number."""
    if len(missing) == 1:
        name = _apart(missing[0], next(part for part in paths if part != missing[0]))
        return f"'{name}', another part of the model by its name, is missing"
    numbers = [str(number) for number, path in enumerate(paths) if path in missing]
    return f"{len(missing)} of {len(paths)} parts of the model are missing, by their names: {first_few(numbers)}"


def _of_trainer(checkpoint: Checkpoint, paths: Sequence[Path]) -> Checkpoint:
    """Add what the trainer keeps beside files of ranks: configuration and tokenizer, and the newest that is whole.

    Raises:
        Unfinished: where the trainer does not name this one yet.
    """
    folder = paths[0].parent
    trainer = next((name for pattern, name in RANK_FILES if pattern.search(paths[0].name)), None)
    if trainer is None:
        return checkpoint
    check_latest(folder.parent)
    config = folder / RANK_CONFIG
    has_config = location(config / "config.json").info().is_file
    return dataclasses.replace(
        checkpoint, trainer=trainer, pretrained=Pretrained("model", config) if has_config else None
    )


def _open_parts(paths: Sequence[Path], options: ReadOptions) -> list[Checkpoint]:
    return [call() for call in side_by_side(lambda part: _open_part(part, options), paths)]


def _open_part(path: Path, options: ReadOptions) -> Checkpoint:
    reader = next((reader for reader in _READERS if reader.matches(path)), None)
    if reader is None:
        raise NoWeights("a part of a model by its name, but not of a format that is read", subject=path)
    return reader.open(path, options)


def _check_copies(parts: Sequence[Checkpoint], twice: str, options: ReadOptions) -> list[str]:
    """Check that parts which share a tensor are copies of one model, as far as the beginnings of the tensors show.

    Return the buffers in which they differ.

    Raises:
        CheckpointError: where they are no copies, naming a tensor that two of them hold.
    """
    first = parts[0]
    names = dict.fromkeys(name for part in parts for name in part.tensors.specs)
    differing = [name for name in names if not _begins_alike(parts, name)]
    if all(_may_differ(parts, name, options) for name in differing):
        return [name for name in differing if not options.copies(name)]
    one, other = [part for part in parts if twice in part.tensors.specs][:2]
    both = [name for name in one.tensors.specs if name in other.tensors.specs]
    name = next((name for name in both if not begin_alike(one.tensors, other.tensors, name)), twice)
    raise CheckpointError(
        f"is one of {len(parts)} files that differ in a number, and '{name}' is in {_apart(one.path, other.path)} and "
        f"in {_apart(other.path, one.path)}: tensors are cut into parts, or these are several models",
        subject=first.path,
        hint=f"put parts together first, with {converter(_apart(first.path, parts[1].path))}; "
        "give each of several models a folder of its own",
    )


def _begins_alike(parts: Sequence[Checkpoint], name: str) -> bool:
    return all(begin_alike(parts[0].tensors, part.tensors, name) for part in parts[1:])


def _may_differ(parts: Sequence[Checkpoint], name: str, options: ReadOptions) -> bool:
    """Return whether each rank may have its own values of what all have: a buffer, by its name or the user's word."""
    is_buffer = name.rpartition(".")[2] in BATCH_STATISTICS or options.copies(name)
    spec = parts[0].tensors.specs.get(name)
    return is_buffer and spec is not None and all(part.tensors.specs.get(name) == spec for part in parts)


def _replicas(paths: Sequence[Path], options: ReadOptions) -> Iterator[Replicas]:
    """Yield what files have that are copies of one model, but for what is said to differ already, or may."""
    parts = _open_parts(paths, options)
    for name, spec in parts[0].tensors.specs.items():
        may_differ = _may_differ(parts, name, options)
        if may_differ and (options.copies(name) or not _begins_alike(parts, name)):
            continue
        each = [Replica(part.path, partial(part.tensors.read_into, name)) for part in parts]
        yield Replicas(name, spec.nbytes, each, None if may_differ else OTHER_SAVES)


def _apart(path: Path, other: Path) -> str:
    """Return the end of a path that tells it from another one."""
    pairs = zip(path.parts[:-1], other.parts[:-1], strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return PurePath(*path.parts[same:]).as_posix()


def _all_parts(path: Path) -> list[Path]:
    """Return the files that are parts of the model at `path`, in order; none if it is no such model."""
    return _parts_inside(path) if location(path).info().is_folder else _parts(path) or _parts_of_ranks(path)


def _parts(path: Path) -> list[Path]:
    """Return the files of the model of which the file at `path` is a part by its name."""
    names = (
        parts_of(path.name, lambda name: location(path.parent / name).info().is_file)
        if is_weights_name(path.name)
        else ()
    )
    return [path.parent / name for name in names] if names and location(path).info().is_file else []


def _parts_of_ranks(path: Path) -> list[Path]:
    """Return the places of the model of which a rank's folder has a part at `path`: that folder's, or one in it.

    Where no other rank has anything at that place, or at one of its own number, the model is whole: but not where ranks
    cut tensors, by their names, or one of them has nothing at all.
    """
    if len(path.parts) <= _MAX_FOLDERS or ".." in path.parts:
        path = plain(path)  # it has the names of the folders around it, be they those around the working directory
    for around in (path, *list(path.parents)[:_MAX_FOLDERS]):
        names = parts_of(around.name, partial(_is_folder_beside, around))
        inner = path.relative_to(around)
        if not names or is_called(around.name, inner.parts):
            continue  # as mostly
        ranks = [around.with_name(name) for name in names]
        paths = [rank / inner for rank in ranks]
        there = sum(location(part).info().exists for part in paths)
        if there == 1 and len(inner.parts) == 1:
            numbered = _numbered_parts(inner.name, ranks)
            if numbered or CUTTING.search(around.name) or not all(map(names_in, ranks)):
                return numbered or paths
        if there > 1:
            return paths
    return []


def _is_folder_beside(path: Path, name: str) -> bool:
    return location(path.with_name(name)).info().is_folder


def _numbered_parts(name: str, ranks: Sequence[Path]) -> list[Path]:
    """Return the parts whose names have the number of the rank, too, as tp_00/model_tp00.pt; none if they are none."""
    holders = {name: rank for rank in ranks for name in names_in(rank)}
    return [holders.get(part, ranks[0]) / part for part in parts_of(name, holders.__contains__)]


def _is_empty_folder(folder: Path) -> bool:
    return location(folder).info().is_folder and not names_in(folder)


def matches_folder(path: Path) -> bool:
    """Return whether a folder with a model is that of a rank, or lies in one, and other ranks have theirs."""
    return location(path).info().is_folder and several.matches(path) and bool(_parts_of_ranks(path))


def _parts_inside(folder: Path) -> list[Path]:
    """Return the files in a folder if they are the parts of one model: by name, or numbered with different tensors.

    Files with equal tensors are checkpoints, or folds of a cross-validation.
    """
    names = sorted(name for name in names_in(folder) if is_weights_name(name) and not is_unfinished_name(name))
    if not names or name_clocks(names[0]).clocks:
        return []
    known = parts_of(names[0], set(names).__contains__)
    if known:
        return [folder / name for name in known] if set(names) <= set(known) else []
    if len(names) < 2 or len({_NUMBER.sub("#", name) for name in names}) > 1:
        return []
    numbers = [tuple(map(int, _NUMBER.findall(name))) for name in names]
    counted = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    if len(counted) != 1 or sorted(counted[0]) not in (list(range(len(names))), list(range(1, len(names) + 1))):
        return []
    paths = [folder / name for _, name in sorted(zip(counted[0], names, strict=True))]
    try:
        one, other = (_open_part(path, ReadOptions()).tensors.specs.keys() for path in paths[:2])
    except CutBetweenRanks:
        return paths
    except EmaError:
        return []  # opening them one by one gives the reason
    return paths if one.isdisjoint(other) else []


def open_folder(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the folders of all ranks, and put them together; raise as `open_checkpoint`."""
    return _open(path, _parts_of_ranks(path), options)


READER = Reader(matches, open_checkpoint)
RANKS_READER = Reader(matches_folder, open_folder, files=False)
