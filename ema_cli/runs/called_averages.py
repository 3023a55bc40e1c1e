"""Decide what is raw and what is averages where only a name says so, or where the user says which set to take.

Contents first: averages that are seen as such, raw weights beside which averages lie, a trainer's own checkpoint in a
folder that happens to be called `ema`. Then the user: `--weights raw`. Names last, and what a name keeps out is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from ema_cli.checkpoint import Averages, Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, NoSuchWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.mark import is_of_training
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import settle_averages
from ema_cli.formats.trainers.names import IN_AVERAGES, NAME_SAYS_AVERAGES, averages_by_name, stem
from ema_cli.law.time import Time
from ema_cli.runs.beside import kind_of
from ema_cli.runs.entering import has_name_of_copy
from ema_cli.runs.moments import at_one_clock, is_older, is_partner, known_clocks
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.passed_over import PassedOver
from ema_cli.runs.search import AS_ITS_NAME_SAYS, Search
from ema_cli.runs.unread import exclude
from ema_cli.storage.location import location
from ema_cli.text import plural


@dataclass(slots=True)
class Settled:
    """What becomes of checkpoints that a name calls averages.

    Attributes:
        entering: those that enter the run.
        passed_over: those that do not.
    """

    entering: list[Checkpoint] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)


def open_called(path: Path, options: ReadOptions, called: str | None) -> Checkpoint:
    """Open a checkpoint that a name may call averages.

    Args:
        path: where it is.
        options: how it is read.
        called: how a name says that it holds averages, None if none does.

    Raises:
        EmaError: as `open_checkpoint`.
    """
    if called is None:
        return open_checkpoint(path, options)
    plain = open_checkpoint(path, replace(options, weights=None))
    if plain.averages is not None or plain.holds_both or (plain.resumable and called == IN_AVERAGES):
        return plain if options.weights is None else open_checkpoint(path, options)
    return settle_averages(replace(plain, averages=Averages(called, sure=False)), options)


def reopen(path: Path, options: ReadOptions) -> Checkpoint:
    """Open a checkpoint that was averaged before: what only its name calls averages was taken for raw weights then.

    Raises:
        EmaError: as `open_checkpoint`.
    """
    called = averages_by_name(path)
    if options.weights is None and called == NAME_SAYS_AVERAGES:
        checkpoint = open_checkpoint(path, options)
        return _as_raw(checkpoint) if checkpoint.averages is None and checkpoint.resumable else checkpoint
    return open_called(path, options, called)


def _as_raw(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint that only its name called averages as one of raw weights, with a warning."""
    warning = f"taken for raw weights, although {NAME_SAYS_AVERAGES}: it holds what its trainer needs to go on"
    return replace(checkpoint, averages=None, warnings=(*checkpoint.warnings, warning))


def settle_named(opened: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return checkpoints that the user named, those with raw weights by their contents as such; see `settle_called`."""
    others = [checkpoint for checkpoint in opened if checkpoint.averages is None]
    return [
        _as_raw(checkpoint)
        if checkpoint.averages == Averages(NAME_SAYS_AVERAGES, sure=False)
        and others
        and _is_raw(checkpoint, others, is_folder=False)
        else checkpoint
        for checkpoint in opened
    ]


def settle_called(search: Search, opened: Sequence[Checkpoint], open_options: OpenOptions) -> Settled:
    """Decide which of the paths that a name calls averages enter a run.

    Args:
        search: what was found; `averages` has those paths.
        opened: the other checkpoints of the run.
        open_options: how the run is opened.

    Raises:
        EmaError: where one of those that enter cannot be read.
    """
    settled, options = Settled(), open_options.read
    by_name: dict[str, list[Checkpoint]] = {}
    for what, all_paths in search.averages.items():
        paths, excluded = _split_excluded(search, what, all_paths, open_options)
        settled.passed_over += excluded
        if not paths:
            continue
        is_folder = location(what).info().is_folder
        called = IN_AVERAGES if is_folder else NAME_SAYS_AVERAGES
        try:
            newest = open_checkpoint(paths[-1], replace(options, weights=None))
        except EmaError:
            settled.passed_over.append(PassedOver(search.name(what), AS_ITS_NAME_SAYS, warn=True))
            continue
        newest = replace(newest, name=search.name(paths[-1]))
        reason = _reason_against(newest, opened, options, is_folder=is_folder)
        if reason == AS_ITS_NAME_SAYS and not is_folder:
            by_name.setdefault(kind_of(newest.name), []).append(newest)
            continue
        if reason is not None:
            is_known = newest.averages is not None
            reason = reason if is_known else _folder_reason(newest, len(paths))
            said = _passed_over(search.name(what), reason, is_missed=_is_missed(newest, opened))
            settled.passed_over.append(PassedOver(said.name, reason) if is_known else said)
            continue
        # Where all files have such names and a trainer's state, it is for the user to say what they are.
        is_raw = _is_raw(newest, opened, is_folder=is_folder) and (is_folder or bool(opened))
        for path in paths:
            checkpoint = replace(open_called(path, options, None if is_raw else called), name=search.name(path))
            is_noted = is_raw and not is_folder and not checkpoint.holds_both and options.weights is None
            settled.entering.append(_as_raw(checkpoint) if is_noted else checkpoint)
    for kind in by_name.values():
        settled.passed_over += _pass_over_by_name(kind, opened)
    return settled


def _split_excluded(
    search: Search, what: Path, paths: Sequence[Path], options: OpenOptions
) -> tuple[list[Path], list[PassedOver]]:
    """Return the paths that the user does not leave out, and what is said of the others."""
    pattern = options.excluded_by(search.name(what))
    if pattern is not None:
        return [], [exclude(search.name(what), pattern)]
    patterns = {path: options.excluded_by(search.name(path)) for path in paths}
    excluded = [exclude(search.name(path), found) for path, found in patterns.items() if found is not None]
    return [path for path, found in patterns.items() if found is None], excluded


def _reason_against(
    newest: Checkpoint, opened: Sequence[Checkpoint], options: ReadOptions, *, is_folder: bool
) -> str | None:
    """Return why what a name calls averages does not enter, None if it does."""
    if newest.mark is not None:
        return None if options.weights == "ema" and is_of_training(newest.mark) else "averaged by ema-cli"
    if options.weights == "ema" and not (newest.holds_both or (newest.resumable and is_folder)):
        return None if known_clocks(newest) or not opened else AS_ITS_NAME_SAYS
    if newest.averages is not None:
        return f"averages: {newest.averaged}" if opened else None
    if _is_raw(newest, opened, is_folder=is_folder) or not opened:
        return None
    is_believed = options.weights == "raw" and not is_folder and _has_own_clock(newest, opened)
    return None if is_believed else AS_ITS_NAME_SAYS


def _is_raw(newest: Checkpoint, opened: Sequence[Checkpoint], *, is_folder: bool) -> bool:
    """Return whether contents show raw weights; two files of one clock are the raw weights and their averages."""
    return newest.holds_both or (newest.resumable and (is_folder or _has_own_clock(newest, opened)))


def _has_own_clock(newest: Checkpoint, opened: Sequence[Checkpoint]) -> bool:
    return bool(known_clocks(newest)) and not any(at_one_clock(newest, other) for other in opened)


def _folder_reason(newest: Checkpoint, count: int) -> str:
    clocks = _shown_clocks(newest)
    return f"{AS_ITS_NAME_SAYS} ({plural(count, 'checkpoint')}{f', the newest at {clocks}' if clocks else ''})"


def _pass_over_by_name(kind: Sequence[Checkpoint], opened: Sequence[Checkpoint]) -> list[PassedOver]:
    """Pass over files of one kind that nothing but their names call averages; say how far they go, and the way in."""
    newest = max(kind, key=lambda checkpoint: sorted(known_clocks(checkpoint).values()))
    reason, clocks = AS_ITS_NAME_SAYS, _shown_clocks(newest)
    if clocks:
        ahead = ", newer than all that enter" if all(is_older(other, newest) for other in opened) else ""
        reason += f" ({'up to' if len(kind) > 1 else 'at'} {clocks}{ahead}; raw weights with --weights raw)"
    return [_passed_over(one.name, reason, is_missed=_is_missed(one, opened)) for one in kind]


def _passed_over(name: str, reason: str, *, is_missed: bool) -> PassedOver:
    return PassedOver(name, reason, warn=is_missed, note=not is_missed)


def _is_missed(averages: Checkpoint, opened: Sequence[Checkpoint]) -> bool:
    """Return whether what only a name calls averages may be a checkpoint of the run: no other is of its moment."""
    has_number = bool(re.search("[0-9]", stem(averages.name))) and not any(map(known_clocks, opened))
    return (bool(known_clocks(averages)) or has_number) and not any(is_partner(averages, other) for other in opened)


def _shown_clocks(checkpoint: Checkpoint) -> str:
    return ", ".join(str(Time(value, unit)) for unit, value in known_clocks(checkpoint).items())


def settle_begun(
    opened: Sequence[Checkpoint], absent: dict[str, tuple[Path, NoSuchWeights]], options: ReadOptions
) -> list[Checkpoint]:
    """Return the checkpoints of a run; those whose averages have just begun are raw.

    An average that has just begun equals the weights, as it does where it took their place. It has begun where the
    checkpoint is older than all that hold both sets.

    Args:
        opened: the checkpoints that could be opened.
        absent: by name, the paths and errors of those without the weights that were asked for; what is raw is removed.
        options: how they are read.
    """
    both = [checkpoint for checkpoint in opened if checkpoint.holds_both and checkpoint.averages is None]
    if not both or options.weights == "ema":
        return list(opened)
    plain = replace(options, weights=None)
    reopened = [replace(open_checkpoint(path, plain), name=name) for name, (path, _) in absent.items()]
    settled = []
    for checkpoint in (*opened, *reopened):
        if _has_just_begun(checkpoint, both):
            absent.pop(checkpoint.name, None)
            note = "raw weights taken; they equal the averages beside them, which had just begun"
            checkpoint = replace(checkpoint, averages=None, holds_both=True, notes=(*checkpoint.notes, note))
        elif checkpoint.name in absent:
            continue
        settled.append(checkpoint)
    return settled


def _has_just_begun(checkpoint: Checkpoint, both: Sequence[Checkpoint]) -> bool:
    is_equal = checkpoint.averages is not None and checkpoint.averages.equal
    return is_equal and averages_by_name(checkpoint.path) is None and all(is_older(checkpoint, other) for other in both)


def sort_absent(
    absent: Mapping[str, tuple[Path, NoSuchWeights]],
    opened: Sequence[Checkpoint],
    options: ReadOptions,
    *,
    named: bool = False,
) -> list[PassedOver]:
    """Return the checkpoints without the weights that were asked for, where a run goes without them.

    It does without a copy that has no clock, without the raw checkpoint whose averages lie beside it, and without
    those that are older than all that have averages: those had not begun.

    Args:
        absent: by name, their paths and the errors that refuse them.
        opened: the checkpoints that have those weights.
        options: how they are read.
        named: whether the user named them: then only averages that had not begun are gone without.

    Raises:
        NoSuchWeights: for any other.
    """
    passed_over = []
    for name, (path, error) in absent.items():
        checkpoint = replace(open_checkpoint(path, replace(options, weights=None)), name=name)
        is_copy = not known_clocks(checkpoint) and has_name_of_copy(checkpoint)
        is_oldest = bool(opened) and all(is_older(checkpoint, other) for other in opened)
        has_partner = any(is_partner(checkpoint, other) for other in opened)
        had_not_begun = is_oldest and options.weights == "ema"
        if not opened or not (had_not_begun or (not named and (is_copy or has_partner))):
            raise error
        reason = f"older than all that have averages: {error.fact}" if is_oldest and not is_copy else error.fact
        passed_over.append(PassedOver(name, reason, warn=not has_partner))
    return passed_over
