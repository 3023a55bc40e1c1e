"""Checkpoints that are folders of Orbax's: recognised by names; what is in them, `orbax.py` reads with tensorstore."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Clock
from ema_cli.errors import IncompleteCheckpoint
from ema_cli.formats.json_text import read_json
from ema_cli.formats.options import ReadOptions, no_component_error, several_models_error
from ema_cli.formats.reader import Reader
from ema_cli.formats.torch_save.file import from_torch
from ema_cli.law.time import Unit
from ema_cli.storage.location import location, names_in

FORMAT = "Orbax"
TREE = "_METADATA"  # of an item: the tree of its arrays
_STEP = "_CHECKPOINT_METADATA"  # of a checkpoint, whose items are in folders
_COMMITTED = "commit_timestamp_nsecs"  # in that: null until all is written
_MARKS = {TREE, _STEP, "manifest.ocdbt", "ocdbt.process_0"}
_DEFAULT = "default"  # the item of a checkpoint with one
_MAX_BYTES = 64 << 20


def matches(path: Path) -> bool:
    """Return whether the folder holds what Orbax leaves in the folder of a checkpoint, or of its only item."""
    names = names_in(path)
    return not _MARKS.isdisjoint(names) or (_DEFAULT in names and not _MARKS.isdisjoint(names_in(path / _DEFAULT)))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the arrays of one item. The number that is the folder's name counts steps.

    Raises:
        IncompleteCheckpoint: where what is written last is missing.
        UsageError: where there are several items, and none of them is named; where tensorstore is not installed.
        CheckpointError: for what is damaged, or lies in a store that tensorstore does not reach.
    """
    names = names_in(path)
    if _STEP in names:
        about = read_json(location(path / _STEP).open(), _MAX_BYTES, constants=True)
        if isinstance(about, dict) and _COMMITTED in about and about[_COMMITTED] is None:
            raise IncompleteCheckpoint(f"{_STEP} says that not all is written", subject=path)
    item = _item(path, options)
    from ema_cli.formats.arrays.orbax import open_item

    opened = open_item(item, location(item / TREE).open())
    files = opened.files
    checkpoint = from_torch(files[0], opened.content, replace(options, component=None), form=FORMAT)
    progress = checkpoint.progress
    if Unit.BATCH not in progress.clocks and path.name.isdecimal() and path.name.isascii():
        clock = Clock(Fraction(path.name), "name")
        progress = replace(progress, clocks={**progress.clocks, Unit.BATCH: clock})
    files, notes = (*files, *checkpoint.files[1:]), (*checkpoint.notes, *opened.notes)
    return replace(checkpoint, name=path.name, path=path, files=files, progress=progress, notes=notes)


def _item(path: Path, options: ReadOptions) -> Path:
    """Return the folder of the model: the checkpoint itself, or one of its items."""
    from ema_cli.formats.trainers.layouts import OTHERS  # which no other format needs to be recognised

    names = names_in(path)
    items = [] if TREE in names else sorted(name for name in names if TREE in names_in(path / name))
    models = [name for name in items if not OTHERS.match(name)] or items
    if options.component is not None:
        if options.component not in items:
            raise no_component_error(path, options.component, models or [_DEFAULT])
        return path / options.component
    if len(models) > 1:
        raise several_models_error(path, models, _DEFAULT if _DEFAULT in models else models[0])
    if not models and TREE not in names:
        raise IncompleteCheckpoint(f"has no {TREE}, without which its arrays have no names", subject=path)
    return path / models[0] if models else path


READER = Reader(matches, open_checkpoint, takes_component=True, files=False)
