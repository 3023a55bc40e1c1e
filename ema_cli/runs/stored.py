"""Find and open the averages that a run stored while it trained (`EMA.store`).

The metadata of a file describe its average. Plans that combine stored averages are made in `planning/stored_plan.py`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint, Clock, Pretrained, Progress
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoWeights, RunError, UsageError, at_terminal
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.law.law import LiveLaw
from ema_cli.law.live import Schedule, live_law_from_dict
from ema_cli.law.time import Time, Unit, interval_text
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.run import Run
from ema_cli.runs.search import PassedOver
from ema_cli.storage.location import check_exists, location, walk
from ema_cli.text import natural_key

FIRST = "first"  # the name of the first copy among stored averages
_MAX_UPDATES = 10**15
_CONFIG = "config.json"
_MAX_CONFIG = 1 << 24  # bytes


@dataclass(frozen=True, slots=True)
class StoredAverage:
    """One stored average: its law (None: the first copy of the model), and the clock at which it was stored."""

    checkpoint: Checkpoint
    law: LiveLaw | None
    clock: Time
    began: Time
    updates: int
    schedule: Schedule


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
        Time.parse(path.parent.name)
    except UsageError:
        return False
    return True


def find_stored(paths: Sequence[Path]) -> list[Path]:
    """Return the files at and below `paths` with names of stored averages, in natural order."""
    stored = [path for path in paths if is_stored(path) and location(path).info().is_file]
    for path in paths:
        inside = walk(path, hidden=False, skip_unreadable=True)
        stored += [entry.path for entry in inside if entry.is_file and is_stored(entry.path)]
    return sorted(dict.fromkeys(stored), key=lambda path: natural_key(path.as_posix()))


def open_stored(paths: Sequence[Path], *, copy: Sequence[str] = ()) -> StoredRun:
    """Read the headers of the stored averages at and below `paths`.

    Args:
        copy: patterns of names; tensors that match one are copied from the newest average.

    Raises:
        NoWeights: if there is none.
        CheckpointError: for a file that cannot be read, or whose metadata do not describe its average.
        RunError: for averages of several trainings.
    """
    for path in paths:
        check_exists(path, follow=False)
    if len(paths) > 1:
        paths = [path.absolute() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    if len(paths) == 1 and location(paths[0]).info().is_folder:
        root = paths[0]
    averages: dict[tuple[str, str], StoredAverage] = {}
    unfinished: list[PassedOver] = []
    for path in find_stored(paths):
        try:
            average = _open_one(path, root)
        except IncompleteCheckpoint as error:
            if path in paths:
                raise
            reason = f"half-written: {error.message(at_terminal, known=path)}"
            unfinished.append(PassedOver(path.relative_to(root).as_posix(), reason, warn=True))
            continue
        if average is None:
            continue
        if averages:
            average.checkpoint.tensors.share(next(iter(averages.values())).checkpoint.tensors)
        key = (average.checkpoint.path.stem, str(average.clock))
        other = averages.setdefault(key, average)
        if other is not average:
            raise RunError(
                f"the average '{key[0]}' at {key[1]} is stored in {other.checkpoint.name}, too",
                subject=path,
                hint="name the folder of one training",
            )
        _check_one_training(other, next(iter(averages.values())))
    if not averages:
        raise NoWeights(
            "no stored average in this folder",
            subject=root,
            hint='store some while the model trains: EMA(model, half_life=("25ba", "100ba")) and ema.store(folder)',
        )
    ordered = sorted(averages.values(), key=lambda average: (average.clock.value, average.law is not None))
    folder = _find_model_folder(ordered[-1].checkpoint.path)
    if folder is not None:
        pretrained = Pretrained("model", folder)
        ordered = [
            replace(average, checkpoint=replace(average.checkpoint, pretrained=pretrained)) for average in ordered
        ]
    _check_one_folder(root, ordered)
    run = Run(
        root,
        tuple(average.checkpoint for average in ordered),
        (ordered[0].clock.unit,),
        tuple(unfinished),
        options=OpenOptions(ReadOptions(copy=tuple(copy))),
    )
    return StoredRun(run, tuple(ordered))


def _check_one_folder(root: Path, averages: Sequence[StoredAverage]) -> None:
    """Check that all averages lie in one folder, in folders by their clocks, as one training stores them."""
    paths = [average.checkpoint.path for average in averages]
    folders = dict.fromkeys(path.parent if path.stem == FIRST else path.parent.parent for path in paths)
    if len(folders) > 1:
        listed = ", ".join(os.path.relpath(folder, root) for folder in folders)
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


def _check_one_training(one: StoredAverage, other: StoredAverage) -> None:
    if (one.began, one.schedule) != (other.began, other.schedule):
        raise RunError(
            f"is of {_training(one)}, but {other.checkpoint.name} of {_training(other)}",
            subject=one.checkpoint.path,
            hint="these are averages of two trainings; name the folder of one",
        )


def _training(average: StoredAverage) -> str:
    schedule = average.schedule
    start = f" and start {schedule.start}" if schedule.start else ""
    return f"an average that began at {average.began} with update interval {interval_text(schedule.interval)}{start}"


def _open_one(path: Path, root: Path) -> StoredAverage | None:
    """Return the stored average in a file, None if the file is something else."""
    checkpoint = safetensors_file.open_checkpoint(path, ReadOptions())
    record = checkpoint.mark.get("stored") if checkpoint.mark else None
    if not isinstance(record, Mapping):
        return None
    try:
        return _parse(checkpoint, record, root)
    except (EmaError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"does not say rightly what is stored in it: {error}", subject=path) from error


def _parse(checkpoint: Checkpoint, record: Mapping[str, Any], root: Path) -> StoredAverage:
    clock, began, updates = Time.parse(record["clock"]), Time.parse(record["began"]), record["updates"]
    schedule = Schedule.from_dict(record)
    interval = schedule.interval
    if interval is not None and (interval.unit is not clock.unit or not 0 < interval.value < math.inf):
        raise ValueError("its update interval is none of its clock's")
    if (
        type(updates) is not int
        or not 0 <= updates < _MAX_UPDATES
        or clock.unit is not began.unit
        or not 0 < began.value <= clock.value < math.inf
    ):
        raise ValueError("its clock and its updates do not fit together")
    times = [Time.parse(f"{value}{Unit(unit)}") for unit, value in record["clocks"].items()]
    clocks = {time.unit: Clock(Fraction(time.value), "file") for time in times}
    clocks[clock.unit] = Clock(Fraction(clock.value), "file")
    opened = replace(
        checkpoint,
        name=checkpoint.path.relative_to(root).as_posix(),
        trainer="EMA.store",
        averages=None,  # it is an average, as expected here: do not flag it
        mark=None,
        progress=Progress(clocks),
        output_dtypes=_output_dtypes(record["types"], checkpoint),
    )
    law = _law(record, clock.unit)
    if law is None and (updates or clock != began):
        raise ValueError("the first copy is not where the average began")
    return StoredAverage(opened, law, clock, began, updates, schedule)


def _law(record: Mapping[str, Any], unit: Unit) -> LiveLaw | None:
    if record["average"] == FIRST:
        return None
    law = live_law_from_dict(record)
    if law.unit not in (None, unit):
        raise ValueError("its half-life is in another unit than its clock")
    return law


def _output_dtypes(record: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's dtypes of the tensors that are stored in a wider dtype, by name."""
    specs = checkpoint.tensors.specs
    types = {}
    for dtype, names in record.items():
        if dtype not in DTYPES or not DTYPES[dtype].is_narrow:
            raise ValueError(f"{dtype} is not stored in a wider type")
        averaged = [name for name, spec in specs.items() if spec.dtype.averaged] if names == "all" else names
        types.update({name: DTYPES[dtype] for name in averaged if name in specs and specs[name].dtype.name == "F32"})
    return types
