"""Files that a user names although others of their moment, which may be parts of the same model, lie beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError, RunError, option
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.names import name_clocks, stem
from ema_cli.formats.trainers.part_names import converter, is_called, parts_of
from ema_cli.runs.beside import kind_of
from ema_cli.runs.members import only_number
from ema_cli.storage.location import location, names_in
from ema_cli.storage.names import plain


def sibling_warnings(checkpoints: Sequence[Checkpoint], options: ReadOptions) -> list[str]:
    """Return a warning of each kind of named files beside which others lie that may be parts of the same model.

    A model that the user chooses with a component is one of several, and no part.

    Raises:
        RunError: where one such file of the moment is named, and another has the rest of the model, or a part of the
            same tensors.
    """
    given = {file.path.absolute() for checkpoint in checkpoints for file in checkpoint.files}
    warnings: dict[str, str] = {}
    for checkpoint in checkpoints if options.component is None else ():
        path = checkpoint.path
        siblings = _siblings(path)
        unnamed = [name for name in siblings if path.parent.absolute() / name not in given]
        kind = kind_of(path.name)
        if not unnamed or kind in warnings:
            continue
        if len(siblings) - len(unnamed) == 1 and _are_counted(siblings):
            _check_other(checkpoint, unnamed[0], options)
        warnings[kind] = (
            f"{path.name}: {unnamed[0]} lies beside it; if they are parts of one model, this is not all of it"
        )
    return list(warnings.values())


def called_folder_warnings(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return a warning of a folder around checkpoints that ends in a shard's number, if another has the same inside."""
    given = {plain(checkpoint.path) for checkpoint in checkpoints}
    for path in sorted(given):
        for around in list(path.parents)[:2]:
            inner = path.relative_to(around)
            if is_called(around.name, inner.parts):
                folders = [around.with_name(name) for name in names_in(around.parent) if name != around.name]
                beside = parts_of(around.name, {folder.name for folder in (*folders, around)}.__contains__)
                others = [folder for folder in folders if folder.name in beside and folder / inner not in given]
                other = next((folder.name for folder in others if location(folder / inner).info().exists), None)
                if other is not None:
                    fact = f"{other} lies beside it; if they are parts of one model, this is not all of it"
                    return [f"{around.name}: {fact}"]
    return []


def _siblings(path: Path) -> list[str]:
    """Return the names in a moment's folder that differ from a file's in one number, its own too; else none."""
    if not name_clocks(path.absolute().parent.name).clocks or not only_number(path.name):
        return []
    if name_clocks(path.name).clocks:
        return []
    return [name for name in sorted(names_in(path.parent)) if kind_of(name) == kind_of(path.name)]


def _are_counted(names: Sequence[str]) -> bool:
    numbers = sorted(int(only_number(name) or 0) for name in names)
    return numbers in ([*range(len(names))], [*range(1, len(names) + 1)])


def _check_other(checkpoint: Checkpoint, name: str, options: ReadOptions) -> None:
    """Check that a file beside a named one is another checkpoint or another model.

    Raises:
        RunError: where it is not, or where nothing tells.
    """
    try:
        other = open_checkpoint(checkpoint.path.parent / name, options)
    except EmaError:
        return
    if other.progress.clocks != checkpoint.progress.clocks:
        return
    mine, theirs = checkpoint.tensors.specs, other.tensors.specs
    if mine.keys().isdisjoint(theirs):
        raise RunError(
            f"is a part of a model: {name} beside it has other tensors, and the same clock",
            subject=checkpoint.path,
            hint=f"name the folders in which the parts lie, such as {checkpoint.path.parent}; "
            f"or take this part as a model of its own: {option('component', stem(checkpoint.path.name))}",
        )
    if mine.keys() == theirs.keys():
        raise RunError(
            f"may be a part of a model: {name} beside it has the same tensors and the same clock",
            subject=checkpoint.path,
            hint=f"parts: put them together first, with {converter(checkpoint.path.name)}; "
            f"one of several models: {option('component', stem(checkpoint.path.name))}",
        )
