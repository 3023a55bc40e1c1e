"""Find and open the averages that a run stored while it trained (`EMA.store`).

The metadata of a file describe its average. Plans that combine stored averages are made in `planning/stored_plan.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import Pretrained
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, IncompleteCheckpoint, NoWeights, RunError, UsageError, at_terminal
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Time, Unit, interval_text
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.passed_over import PassedOver
from ema_cli.runs.paths import check_paths
from ema_cli.runs.run import Run
from ema_cli.runs.stored_branches import choose_branch
from ema_cli.runs.stored_file import FIRST, StoredAverage, open_stored_file
from ema_cli.storage.location import location, walk
from ema_cli.storage.names import common_folder, relative_name
from ema_cli.storage.store.header_cache import opening
from ema_cli.text import natural_key

_CONFIG = "config.json"
_MAX_CONFIG = 1 << 24  # bytes


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The stored averages of one training, oldest first; at the same clock the first copy, then in order of names."""

    run: Run
    averages: tuple[StoredAverage, ...]

    @property
    def root(self) -> Path:
        """Return the folder that holds them."""
        return self.run.root

    @property
    def unit(self) -> Unit:
        """Return the unit of the averages' clocks."""
        return self.averages[0].clock.unit

    @property
    def interval(self) -> Time | None:
        """Return the time between update events, None if each update was one."""
        return self.averages[0].schedule.interval

    @property
    def names(self) -> list[str]:
        """Return the names of the averages, the first copy left out."""
        return list(dict.fromkeys(average.checkpoint.path.stem for average in self.averages if average.law is not None))

    @property
    def clocks(self) -> list[str]:
        """Return when averages were stored, the first copy left out."""
        return list(dict.fromkeys(str(average.clock) for average in self.averages if average.law is not None))

    @property
    def has_first_copy(self) -> bool:
        """Return whether the first copy of the model is stored, too."""
        return any(average.law is None for average in self.averages)


def is_stored(path: Path) -> bool:
    """Return whether `EMA.store` gives such names to a file and its folder."""
    if path.suffix != ".safetensors":
        return False
    if path.stem == FIRST:
        return True
    try:
        return str(Time.parse(path.parent.name)) == path.parent.name
    except UsageError:
        return False


def find_stored(paths: Sequence[Path]) -> list[Path]:
    """Return the files at and below `paths` with names of stored averages, in natural order."""
    stored = [path for path in paths if is_stored(path) and location(path).info().is_file]
    for path in paths:
        inside = walk(path, hidden=False, skip_unreadable=True)
        stored += [entry.path for entry in inside if entry.is_file and is_stored(entry.path)]
    return sorted(dict.fromkeys(stored), key=lambda path: natural_key(path.as_posix()))


@opening()
def open_stored(paths: Sequence[Path], *, copy: Sequence[str] = (), component: str | None = None) -> StoredRun:
    """Read the headers of the stored averages at and below `paths`.

    Args:
        paths: files and folders.
        copy: patterns of names; tensors that match one are copied from the newest average.
        component: which start or resume of a training is meant, where several have stored there.

    Raises:
        NoWeights: if there is none.
        CheckpointError: for a file that cannot be read, or whose metadata do not describe its average.
        RunError: for averages of several trainings.
    """
    check_paths(paths)
    if len(paths) > 1:
        paths = [path.absolute() for path in paths]
    is_one_folder = len(paths) == 1 and location(paths[0]).info().is_folder
    root = paths[0] if is_one_folder else common_folder(path.parent for path in paths)
    opened, passed_over = _open_all(paths, root)
    if not opened:
        raise NoWeights(
            "no stored average in this folder",
            subject=root,
            hint='store some while the model trains: EMA(model, half_life=("25ba", "100ba")) and ema.store(folder)',
        )
    averages, others = choose_branch(opened, component, root)
    _check_one_training(averages, root)
    ordered = sorted(averages, key=lambda average: (average.clock.value, average.law is not None))
    folder = _find_model_folder(ordered[-1].checkpoint.path)
    if folder is not None:
        pretrained = Pretrained("model", folder)
        ordered = [
            replace(average, checkpoint=replace(average.checkpoint, pretrained=pretrained)) for average in ordered
        ]
    run = Run(
        root,
        tuple(average.checkpoint for average in ordered),
        (ordered[0].clock.unit,),
        (*passed_over, *others),
        options=OpenOptions(ReadOptions(component=component, copy=tuple(copy))),
    )
    return StoredRun(run, tuple(ordered))


def _open_all(paths: Sequence[Path], root: Path) -> tuple[list[StoredAverage], list[PassedOver]]:
    """Return all stored averages at and below `paths`, and what is half-written."""
    averages: list[StoredAverage] = []
    unfinished: list[PassedOver] = []
    for path in find_stored(paths):
        try:
            average = open_stored_file(path, root)
        except IncompleteCheckpoint as error:
            if path in paths:
                raise
            reason = f"half-written: {error.message(at_terminal, known=path)}"
            unfinished.append(PassedOver(path.relative_to(root).as_posix(), reason, warn=True))
            continue
        if average is None:
            continue
        if averages:
            average.checkpoint.tensors.share(averages[0].checkpoint.tensors)
        averages.append(average)
    return averages, unfinished


def _check_one_training(averages: Sequence[StoredAverage], root: Path) -> None:
    """Check that averages began together, count alike, and that none is there twice.

    Raises:
        RunError: for averages of two trainings, which those of earlier versions do not say of themselves.
    """
    known: dict[tuple[str, str], StoredAverage] = {}
    for average in averages:
        key = (average.checkpoint.path.stem, str(average.clock))
        other = known.setdefault(key, average)
        if other is not average:
            raise RunError(
                f"the average '{key[0]}' at {key[1]} is stored in {other.checkpoint.name}, too",
                subject=average.checkpoint.path,
                hint="name the folder of one training",
            )
        if (average.began, average.schedule) != (averages[0].began, averages[0].schedule):
            raise RunError(
                f"is of {_training(average)}, but {averages[0].checkpoint.name} of {_training(averages[0])}",
                subject=average.checkpoint.path,
                hint="these are averages of two trainings; name the folder of one",
            )
    unnamed = [average.checkpoint.path for average in averages if not average.branch]
    folders = dict.fromkeys(path.parent if path.stem == FIRST else path.parent.parent for path in unnamed)
    if len(folders) > 1:
        listed = ", ".join(relative_name(folder, root) for folder in folders)
        raise RunError(
            f"holds what {len(folders)} trainings stored: {listed}",
            subject=root,
            hint="name the folder of one training",
        )


def _find_model_folder(path: Path) -> Path | None:
    """Return the folder of the Hugging Face model that a stored average belongs to.

    It is around the average, or the newest next to it. The average gets its configuration, tokenizer and other files.
    """
    for parent in list(path.absolute().parents)[1:3]:
        entries = location(parent).entries()
        numbered = [entry.path for entry in entries if re.fullmatch(r"checkpoint-\d+", entry.name)]
        for folder in (parent, *sorted(numbered, key=lambda path: natural_key(path.name), reverse=True)):
            if _is_model_config(folder / _CONFIG):
                return folder
    return None


def _is_model_config(config: Path) -> bool:
    """Return whether a file is a configuration by Hugging Face's libraries, not just any file of that name."""
    try:
        info = location(config).info()
        if not info.is_file or info.size >= _MAX_CONFIG:
            return False
        value = json.loads(location(config).open().read(0, info.size))
    except (CheckpointError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not value.keys().isdisjoint(("model_type", "architectures", "_class_name"))


def _training(average: StoredAverage) -> str:
    schedule = average.schedule
    start = f" and start {schedule.start}" if schedule.start else ""
    return f"an average that began at {average.began} with update interval {interval_text(schedule.interval)}{start}"
