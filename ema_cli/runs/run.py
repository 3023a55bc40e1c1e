"""The ordered checkpoints of one training: open, order, drop what counts twice, compare. No tensors here."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from ema_cli.checkpoint import Averages, Checkpoint
from ema_cli.errors import (
    EmaError,
    IncompleteCheckpoint,
    NoWeights,
    RunError,
    UsageError,
    at_terminal,
    mentioned,
    option,
)
from ema_cli.formats import WHAT_IS_READ, is_checkpoint_folder, open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import settle_averages
from ema_cli.formats.trainers.names import COPIES, IN_AVERAGES, averages_by_name
from ema_cli.law.time import Time, Unit
from ema_cli.runs.clocks import order_units, settle_clocks, space
from ema_cli.runs.search import PassedOver, Search, check_one_run
from ema_cli.storage.location import location
from ema_cli.text import natural_key

_HF_NAME = re.compile(r"(?:^|/)checkpoint-[0-9]+$")


@dataclass(frozen=True, slots=True)
class Run:
    """The checkpoints of one training, oldest first, and what was noticed about them.

    `units`: those in which every checkpoint has a clock; empty where only the names give an order. `options`,
    `epoch_length` and `spacing`: what was said of how to read them.
    """

    root: Path
    checkpoints: tuple[Checkpoint, ...]
    units: tuple[Unit, ...]
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()
    options: ReadOptions = field(default_factory=ReadOptions)
    epoch_length: Time | None = None
    spacing: Time | None = None

    def twins(self, unit: Unit | None = None) -> list[tuple[Checkpoint, ...]]:
        """Return the groups of checkpoints with one clock in `unit`, the one to keep first.

        Epochs that are counted in whole numbers do not tell batches apart, so batches count where there are any.
        """
        units = {unit or self.units[0], *(unit for unit in self.units if unit is Unit.BATCH)} if self.units else set()
        groups: dict[tuple[object, ...], list[Checkpoint]] = {}
        for checkpoint in self.checkpoints if units else ():
            key = tuple(checkpoint.clock(unit) for unit in units)
            groups.setdefault(key, []).append(checkpoint)
        return [tuple(sorted(group, key=_preference)) for group in groups.values() if len(group) > 1]


def open_run(
    paths: Sequence[Path],
    *,
    options: ReadOptions | None = None,
    epoch_length: Time | None = None,
    spacing: Time | None = None,
) -> Run:
    """Read the headers of one run: a folder that holds it, or its checkpoints in any order.

    `epoch_length` (in batches) converts between epochs and batches; `spacing` gives clocks, in natural order of
    the names, to checkpoints that record none.

    Raises:
        CheckpointError: for a checkpoint that cannot be read, or where none is complete.
        RunError: for several runs in one folder, and for clocks that contradict each other.
    """
    options = options or ReadOptions()
    for path in paths:
        if not location(path).info(follow=False).exists:
            raise UsageError("does not exist", subject=path)
    search = _search(paths)
    # A folder that is itself the only checkpoint in it is one that is named.
    named = search is None or search.paths == [search.root]
    if search is not None and not named:
        root, opened, passed_over = _open_found(search, options)
    else:
        root, opened = _open_named(paths, options)
        passed_over = [each for each in search.passed_over if each.warn] if search else []
    opened, aliases = _drop_aliases(opened)
    checkpoints, notes = settle_clocks(opened, epoch_length)
    checkpoints, unclocked = _drop_unclocked_copies(checkpoints, named=named, spaced=spacing is not None)
    if spacing is not None:
        checkpoints = space(checkpoints, spacing)
    notes += _unmatched_patterns(checkpoints, options)
    units = order_units(checkpoints)
    left = (*passed_over, *aliases, *unclocked)
    return Run(root, _order(checkpoints, units), units, left, tuple(notes), options, epoch_length, spacing)


def open_by_name(paths: Mapping[str, Path], options: ReadOptions) -> list[Checkpoint]:
    """Open the checkpoints at some paths, each under the name that it is given.

    Raises:
        CheckpointError: for one that cannot be read.
    """
    opened: list[Checkpoint] = []
    for name, path in paths.items():
        _add(opened, replace(_open_one(path, options, averages=averages_by_name(path)), name=name))
    return opened


def _unmatched_patterns(checkpoints: Sequence[Checkpoint], options: ReadOptions) -> list[str]:
    """Return a note for each pattern of names to copy that matches none: a slip, most likely."""
    names = (
        {name for checkpoint in checkpoints for name in (*checkpoint.tensors.specs, *checkpoint.left_out)}
        if options.copy
        else set()
    )
    unmatched = [pattern for pattern in options.copy if not fnmatch.filter(names, pattern)]
    return [f"--copy '{pattern}' matches no tensor" for pattern in unmatched]


def _search(paths: Sequence[Path]) -> Search | None:
    """Return what a folder holds; None where checkpoints are named."""
    if len(paths) > 1 or not location(paths[0]).info().is_folder:
        return None
    search = Search(paths[0])
    search.visit(paths[0])
    return search


def _open_found(search: Search, options: ReadOptions) -> tuple[Path, list[Checkpoint], list[PassedOver]]:
    folder = search.root
    opened: list[Checkpoint] = []
    incomplete: list[EmaError] = []
    without_weights: list[EmaError] = []
    for path in search.paths:
        try:
            # A run may be called after its averages, as exp_ema; a folder that is just called so holds them.
            averages = IN_AVERAGES if folder.absolute().name.lower() == "ema" else None
            checkpoint = _open_one(path, options, averages=averages)
        except IncompleteCheckpoint as error:
            incomplete.append(error)
            search.pass_over(path, f"half-written: {error.message(at_terminal, known=path)}", warn=True)
            continue
        except NoWeights as error:
            without_weights.append(error)
            search.pass_over(path, f"no weights: {error.message(at_terminal, known=path)}", warn=True)
            continue
        if checkpoint.mark is not None:
            search.pass_over(path, "averaged by ema-cli")
            continue
        _add(opened, replace(checkpoint, name=search.name(path)))
    check_one_run(folder, [checkpoint.path for checkpoint in opened])
    opened, unmarked = _drop_unmarked(opened)
    if not opened:
        if incomplete:
            raise IncompleteCheckpoint(f"no complete checkpoint: {incomplete[0].message(mentioned)}", subject=folder)
        if without_weights:
            first = without_weights[0]
            raise NoWeights(f"no checkpoint: {first.message(mentioned)}", subject=folder, hint=first.advice(mentioned))
        raise NoWeights(
            "no checkpoint in this folder",
            subject=folder,
            hint=WHAT_IS_READ,
        )
    return folder, opened, [*search.passed_over, *unmarked]


def _open_named(paths: Sequence[Path], options: ReadOptions) -> tuple[Path, list[Checkpoint]]:
    # Equal inputs give equal names, however the paths to them are spelled.
    plain = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - resolve() would follow links
    root = Path(os.path.commonpath([path.parent for path in plain]))
    opened: list[Checkpoint] = []
    for path, plain_path in zip(paths, plain, strict=True):
        if len(paths) > 1 and location(path).info().is_folder and not is_checkpoint_folder(path):
            raise UsageError(
                "is a folder, but not a checkpoint",
                subject=path,
                hint="name one folder that holds a run, or checkpoints",
            )
        checkpoint = _open_one(path, options, averages=averages_by_name(path))
        _add(opened, replace(checkpoint, name=plain_path.relative_to(root).as_posix()))
    for unmarked in _drop_unmarked(opened)[1]:
        raise IncompleteCheckpoint(f"{root / unmarked.name}: {unmarked.reason}")
    return root, opened


def _add(opened: list[Checkpoint], checkpoint: Checkpoint) -> None:
    if opened:
        checkpoint.tensors.share(opened[0].tensors)
    opened.append(checkpoint)


def _open_one(path: Path, options: ReadOptions, *, averages: str | None) -> Checkpoint:
    """Open a checkpoint; where its name says `averages`, it is one itself, unless the user says what to take."""
    if averages is None:
        return open_checkpoint(path, options)
    checkpoint = open_checkpoint(path, replace(options, weights=None))
    return settle_averages(replace(checkpoint, averages=checkpoint.averages or Averages(averages)), options)


def _drop_unmarked(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[PassedOver]]:
    """Drop the Trainer's folders whose trainer_state.json, written last, is not there yet."""

    def has_state(checkpoint: Checkpoint) -> bool:
        return any(clock.source == "sidecar" for clock in checkpoint.progress.clocks.values())

    if not any(map(has_state, opened)):
        return opened, []
    kept: list[Checkpoint] = []
    dropped: list[PassedOver] = []
    reason = "half-written: its trainer_state.json, which is written last, is missing"
    for each in opened:
        if has_state(each) or not _HF_NAME.search(each.name):
            kept.append(each)
        else:
            dropped.append(PassedOver(each.name, reason, warn=True))
    return kept, dropped


def _drop_aliases(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[PassedOver]]:
    """Count each set of files once, however many links lead to it."""
    kept: dict[object, Checkpoint] = {}
    dropped = []
    for checkpoint in sorted(opened, key=_preference):
        key = tuple(file.identity for file in checkpoint.files)
        if key in kept:
            dropped.append(PassedOver(checkpoint.name, f"the same file as {kept[key].name}"))
        else:
            kept[key] = checkpoint
    return list(kept.values()), dropped


def _preference(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Order names of one and the same state: numbered before last, best and latest, real before linked."""
    name = checkpoint.name
    last = name.rpartition("/")[2]
    unnumbered = bool(COPIES.search(last)) or not re.search(r"[0-9]", name)
    return unnumbered, location(checkpoint.path).info(follow=False).is_link, len(name), natural_key(name)


def _drop_unclocked_copies(
    checkpoints: list[Checkpoint], *, named: bool, spaced: bool
) -> tuple[list[Checkpoint], list[PassedOver]]:
    """Drop final models and the like, which carry no clock, from a run whose checkpoints do, or are `spaced`.

    Nothing is dropped that the user `named`.
    """
    clocked = [checkpoint for checkpoint in checkpoints if checkpoint.progress.clocks]
    kept, dropped = [], []
    for checkpoint in checkpoints:
        last = checkpoint.name.rpartition("/")[2]
        reason = "a copy, as its name says" if COPIES.search(checkpoint.name) else "its name has no number"
        is_copy = not named and (bool(COPIES.search(checkpoint.name)) or not re.search(r"[0-9]", last))
        if checkpoint.progress.clocks or not (clocked or (spaced and is_copy)):
            kept.append(checkpoint)
        elif checkpoint.averaged:
            raise averaged_error(checkpoint)
        elif is_copy:
            dropped.append(PassedOver(checkpoint.name, "records no clock" if clocked else reason, warn=True))
        elif spaced:
            kept.append(checkpoint)  # `space` says that some record a clock and some do not
        else:
            raise RunError(
                f"records no clock, but {clocked[0].name} does",
                subject=checkpoint.path,
                hint=f"name the checkpoints to average, or those without a clock together with {option('spacing')}",
            )
    return (kept, dropped) if kept else (checkpoints, [])


def _order(checkpoints: Iterable[Checkpoint], units: tuple[Unit, ...]) -> tuple[Checkpoint, ...]:
    """Sort by the clocks, and check that no two units contradict each other."""
    if not units:
        return tuple(sorted(checkpoints, key=lambda each: natural_key(each.name)))
    ordered = sorted(checkpoints, key=lambda each: ([each.clock(unit) for unit in units], _preference(each)))
    for older, newer in pairwise(ordered):
        for unit in units[1:]:
            before, after = older.clock(unit), newer.clock(unit)
            if before is not None and after is not None and before > after:
                raise RunError(
                    f"is later than {older.name} in {units[0].plural}, but earlier in {unit.plural}",
                    subject=newer.path,
                    hint="these are not checkpoints of one run; name those that are",
                )
    return tuple(ordered)


def averaged_error(checkpoint: Checkpoint) -> RunError:
    """Return the error that refuses a checkpoint of averages: a second average smooths twice."""
    if checkpoint.averages is not None and checkpoint.averages.has_raw:
        hint = "take the raw weights stored beside them with --weights raw, or average the averages with --weights ema"
    else:
        hint = "average the run's raw checkpoints, or these averages once more with --weights ema"
    return RunError(f"is averaged already: {checkpoint.averaged}", subject=checkpoint.path, hint=hint)
