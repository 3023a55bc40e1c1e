"""Open the checkpoints of a run: those that a search of its folder finds, those that the user names, or by manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError, IncompleteCheckpoint, NoSuchWeights, NoWeights, UsageError
from ema_cli.formats import is_checkpoint_folder
from ema_cli.formats.mark import is_of_training
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.names import IN_AVERAGES, averages_by_name, name_clocks
from ema_cli.runs.called_averages import open_called, reopen, settle_begun, settle_called, settle_named, sort_absent
from ema_cli.runs.empty_models import check_has_elements
from ema_cli.runs.entering import drop_aliases, drop_unmarked, unmarked_error
from ema_cli.runs.members import check_not_parts, check_one_run, foreign_to_run, several_runs_error
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.passed_over import PassedOver
from ema_cli.runs.search import Search
from ema_cli.runs.unread import Sorted, Unread, exclude, no_checkpoint, sort_unread
from ema_cli.storage.location import location, names_in
from ema_cli.storage.names import common_folder, plain
from ema_cli.storage.side_by_side import side_by_side

_OUR_AVERAGES = "averaged by ema-cli"
_FEW = 4  # files in a named folder that are opened to tell which of them hold weights


def search_folder(paths: Sequence[Path], options: ReadOptions) -> Search | None:
    """Search the folder of a run; return None if the paths are checkpoints."""
    if len(paths) > 1 or not location(paths[0]).info().is_folder:
        return None
    search = Search(paths[0], options)
    search.visit(paths[0])
    if options.component is not None:
        search.choose(options.component)
    return search


def open_searched(search: Search, options: OpenOptions) -> tuple[list[Checkpoint], Sorted]:
    """Open the checkpoints that a search collected; return them, and what becomes of the other paths.

    Raises:
        RunError: where they are of several runs.
        EmaError: where none is complete; the first problem, then.
    """
    folder = search.root
    opened: list[Checkpoint] = []
    unread: list[Unread] = []
    excluded: list[PassedOver] = []
    absent: dict[str, tuple[Path, NoSuchWeights]] = {}
    # The folder of a run may be called exp_ema for any reason; one called just ema holds averages.
    averages = IN_AVERAGES if folder.absolute().name.lower() == "ema" else None
    models = {*search.paths, *search.final_models}  # what lies in such a folder is a form of its model
    foreign_files = [path for path in search.foreign if path.parent not in models]
    names = {path: search.name(path) for path in (*search.weightless, *foreign_files, *search.paths)}

    def open_one(path: Path) -> Checkpoint:
        if path in search.weightless:
            raise IncompleteCheckpoint("holds no weights", subject=path)
        return open_called(path, options.read, averages)

    calls = side_by_side(open_one, [path for path, name in names.items() if options.excluded_by(name) is None])
    for path, name in names.items():
        if (pattern := options.excluded_by(name)) is not None:
            excluded.append(exclude(name, pattern))
            continue
        try:
            checkpoint = next(calls)()
            if checkpoint.mark is not None and not (options.read.weights == "ema" and is_of_training(checkpoint.mark)):
                search.pass_over(path, _OUR_AVERAGES)
                continue
            _add(opened, replace(checkpoint, name=name))
        except NoSuchWeights as error:
            absent[name] = path, error
        except EmaError as error:
            unread.append(Unread(name, path, error))
    settled = settle_called(search, opened, options)
    for checkpoint in settled.entering:
        _add(opened, checkpoint)
    opened = settle_begun(opened, absent, options.read)
    excluded += [*settled.passed_over, *sort_absent(absent, opened, options.read)]
    foreign = dict(foreign_to_run(opened))
    opened = [checkpoint for checkpoint in opened if checkpoint not in foreign]
    excluded += [PassedOver(checkpoint.name, reason, warn=True) for checkpoint, reason in foreign.items()]
    check_one_run(folder, opened)
    check_not_parts(folder, opened)
    opened, unmarked = drop_unmarked(opened)
    unread += [Unread(checkpoint.name, checkpoint.path, unmarked_error(checkpoint)) for checkpoint in unmarked]
    if not opened:
        ours = [passed.name for passed in search.passed_over if passed.reason == _OUR_AVERAGES]
        raise no_checkpoint(folder, unread, excluded, ours)
    for passed in search.passed_over:
        pattern = options.excluded_by(passed.name) if passed.warn else None
        excluded.append(passed if pattern is None else exclude(passed.name, pattern))
    return opened, sort_unread(unread, opened, excluded, skip_damaged=options.skip_damaged)


def open_named(paths: Sequence[Path], options: OpenOptions) -> tuple[Path, list[Checkpoint], Sorted]:
    """Open the checkpoints at `paths`; return the folder that their names are relative to, and as `open_searched`.

    A folder with one checkpoint in it names that checkpoint.
    """
    inside = _checkpoints_in(paths) if len(paths) > 1 else {}
    inside = {path: _with_weights(found, options) for path, found in inside.items()}
    runs = {path: len(checkpoints) for path, checkpoints in inside.items() if len(checkpoints) > 1}
    if runs:
        raise several_runs_error(runs)
    paths = [inside.get(path, [path])[0] for path in paths]
    # Equal inputs give equal names, however the paths to them are spelled.
    several = [plain(path) for path in paths]
    root = common_folder(path.parent for path in several)
    opened: list[Checkpoint] = []
    excluded: list[PassedOver] = []
    absent: dict[str, tuple[Path, NoSuchWeights]] = {}
    names = [path.relative_to(root).as_posix() for path in several]

    def open_one(path: Path) -> Checkpoint:
        if len(paths) > 1 and location(path).info().is_folder and not is_checkpoint_folder(path):
            raise UsageError(
                "is a folder, but not a checkpoint",
                subject=path,
                hint="name one folder that holds a run, or checkpoints",
            )
        return open_called(path, options.read, averages_by_name(path))

    entering = [path for path, name in zip(paths, names, strict=True) if options.excluded_by(name) is None]
    calls = side_by_side(open_one, entering)
    for path, name in zip(paths, names, strict=True):
        if (pattern := options.excluded_by(name)) is not None:
            excluded.append(exclude(name, pattern))
            continue
        try:
            _add(opened, replace(next(calls)(), name=name))
        except NoSuchWeights as error:
            absent[name] = path, error
    opened = settle_begun(settle_named(opened), absent, options.read)
    excluded += sort_absent(absent, opened, options.read, named=True)
    for unmarked in drop_unmarked(opened)[1]:
        raise unmarked_error(unmarked)
    if not opened:
        raise no_checkpoint(root, [], excluded)
    return root, opened, sort_unread([], opened, excluded, skip_damaged=options.skip_damaged)


def _with_weights(paths: list[Path], options: OpenOptions) -> list[Path]:
    """Return those of a few paths at which there are weights: one, where all names lead to the same files."""
    if not 1 < len(paths) <= _FEW:
        return paths
    opened = []
    for path in paths:
        try:
            opened.append(open_called(path, options.read, averages_by_name(path)))
        except NoWeights:
            continue
        except EmaError:
            return paths
    return [checkpoint.path for checkpoint in drop_aliases(opened)[0]] or paths


def open_by_name(paths: Mapping[str, Path], options: ReadOptions) -> list[Checkpoint]:
    """Open the checkpoints at some paths, under the given names.

    Raises:
        CheckpointError: for one that cannot be read.
    """
    opened: list[Checkpoint] = []
    calls = side_by_side(lambda path: reopen(path, options), list(paths.values()))
    for name, call in zip(paths, calls, strict=True):
        _add(opened, replace(call(), name=name))
    return opened


def _add(opened: list[Checkpoint], checkpoint: Checkpoint) -> None:
    """Append a checkpoint, and let it share equal tables of tensors with the first, to save memory.

    Raises:
        CheckpointError: where its tensors are there, and their elements are not.
    """
    if opened:
        checkpoint.tensors.share(opened[0].tensors)
    if not opened or checkpoint.tensors.specs is not opened[0].tensors.specs:
        check_has_elements(checkpoint)
    opened.append(checkpoint)


def _checkpoints_in(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return the folders that are no checkpoints themselves, each with what a search of it takes for checkpoints.

    A folder in which there is none is left out.
    """
    inside = {}
    for path in paths:
        names = names_in(path)
        if names and (any(name_clocks(name).clocks for name in names) or not is_checkpoint_folder(path)):
            search = Search(path)
            search.visit(path)
            if search.paths not in ([], [path]):
                inside[path] = [*search.paths, *search.weightless]
    return inside
