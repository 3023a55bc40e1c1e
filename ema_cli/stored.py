"""Averages that a run stored while it trained (`EMA.store`), and plans that make others of them.

What each file is, its metadata say. Nothing here knows how the weights are found: that is `synthesis.py`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ema_cli.checkpoint import DTYPES, Checkpoint, Clock, Progress
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoWeights, RunError, UsageError
from ema_cli.events import UNIFORM_SIGMA_REL, HalfLife, Law, Power, Smoothing
from ema_cli.find import PassedOver, natural_key
from ema_cli.formats import safetensors_file
from ema_cli.formats.options import ReadOptions
from ema_cli.plan import Approximation, Entry, Plan
from ema_cli.recipe import EVERY, POWER, Recipe
from ema_cli.run import Run
from ema_cli.units import Time, Unit

if TYPE_CHECKING:
    from ema_cli.synthesis import Moment, Profiles  # which import numpy: not for `inspect` of a run without any

FIRST = "first"  # the name of the first copy among stored averages
_LEAST_BINS = 10
_MAX_UPDATES = 10**15
_MAX_STORED = 1000
_GRID = 8  # half-lives in a decade
_CONFIG = "config.json"
_MAX_CONFIG = 1 << 24  # bytes


@dataclass(frozen=True, slots=True)
class StoredAverage:
    """One stored average: its law (None: the first copy of the model), and when it was stored."""

    checkpoint: Checkpoint
    law: Law | None
    clock: Time
    began: Time
    updates: int
    events: tuple[str, str]  # update interval and start, as text: those of one training are equal


@dataclass(frozen=True, slots=True)
class StoredRun:
    """All that one training stored, oldest first; at one clock the first copy, then as named."""

    run: Run
    averages: tuple[StoredAverage, ...]

    @property
    def root(self) -> Path:
        """Return the folder that holds them."""
        return self.run.root

    @property
    def unit(self) -> Unit:
        """Return the unit in which the averages count."""
        return self.averages[0].clock.unit

    @property
    def interval(self) -> Time | None:
        """Return the time between update events, None where each update was one."""
        text = self.averages[0].events[0]
        return None if text == EVERY else Time.parse(text)


def is_stored(path: Path) -> bool:
    """Return whether a file's name and folder are such as `EMA.store` gives."""
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
    """Return the files at and below `paths` that look stored by their names, in natural order."""
    found = [path for path in paths if path.is_file() and is_stored(path)]
    for path in paths:
        for folder, folders, names in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [each for name in names if is_stored(each := Path(folder) / name) and each.is_file()]
    return sorted(dict.fromkeys(found), key=lambda each: natural_key(each.as_posix()))


def open_stored(paths: Sequence[Path]) -> StoredRun:
    """Read the headers of what a training stored at or below `paths`.

    Raises:
        NoWeights: where nothing is stored there.
        CheckpointError: for a file that cannot be read, or does not say what it is.
        RunError: for averages of several trainings.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: does not exist")
    if len(paths) > 1:
        paths = [path.absolute() for path in paths]
    root = paths[0] if len(paths) == 1 and paths[0].is_dir() else Path(os.path.commonpath([p.parent for p in paths]))
    averages: dict[tuple[str, str], StoredAverage] = {}
    unfinished: list[PassedOver] = []
    for path in find_stored(paths):
        try:
            average = _open_one(path, root)
        except IncompleteCheckpoint as error:
            if path in paths:
                raise
            reason = f"half-written: {str(error).removeprefix(f'{path}: ')}"
            unfinished.append(PassedOver(path.relative_to(root).as_posix(), reason, warn=True))
            continue
        if average is None:
            continue
        if averages:
            average.checkpoint.weights.share(next(iter(averages.values())).checkpoint.weights)
        key = (average.checkpoint.path.stem, str(average.clock))
        other = averages.setdefault(key, average)
        if other is not average:
            raise RunError(
                f"{path}: the average '{key[0]}' at {key[1]} is stored in {other.checkpoint.name}, too",
                hint="name the folder of one training",
            )
        _check_one_training(other, next(iter(averages.values())))
    if not averages:
        raise NoWeights(
            f"{root}: no stored average in this folder",
            hint='store some while the model trains: EMA(model, half_life=("25ba", "100ba")) and ema.store(folder)',
        )
    ordered = sorted(averages.values(), key=lambda each: (each.clock.value, each.law is not None))
    folder = _find_model_folder(ordered[-1].checkpoint.path)
    if folder is not None:
        ordered = [replace(each, checkpoint=replace(each.checkpoint, base="model", folder=folder)) for each in ordered]
    _check_one_folder(root, ordered)
    run = Run(root, tuple(each.checkpoint for each in ordered), (ordered[0].clock.unit,), tuple(unfinished))
    return StoredRun(run, tuple(ordered))


def _check_one_folder(root: Path, averages: Sequence[StoredAverage]) -> None:
    """Check that one training stored all of them: into one folder, in folders by their clocks."""
    paths = [each.checkpoint.path for each in averages]
    folders = dict.fromkeys(path.parent if path.stem == FIRST else path.parent.parent for path in paths)
    if len(folders) > 1:
        listed = ", ".join(os.path.relpath(folder, root) for folder in folders)
        raise RunError(
            f"{root}: holds what {len(folders)} trainings stored: {listed}", hint="name the folder of one training"
        )


def _find_model_folder(path: Path) -> Path | None:
    """Return the folder of a Hugging Face model to which a stored average belongs: around it, or the newest beside it.

    The average gets its configuration, its tokenizer and the like.
    """
    for parent in list(path.absolute().parents)[1:3]:
        numbered = [child for child in parent.iterdir() if re.fullmatch(r"checkpoint-\d+", child.name)]
        for folder in (parent, *sorted(numbered, key=lambda child: natural_key(child.name), reverse=True)):
            if _is_of_a_model(folder / _CONFIG):
                return folder
    return None


def _is_of_a_model(config: Path) -> bool:
    """Return whether it is a configuration as Hugging Face's libraries write it, not anything called so."""
    try:
        found = json.loads(config.read_bytes()) if config.is_file() and config.stat().st_size < _MAX_CONFIG else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not found.keys().isdisjoint(("model_type", "architectures", "_class_name"))


def _check_one_training(one: StoredAverage, other: StoredAverage) -> None:
    if (one.began, one.events) != (other.began, other.events):
        raise RunError(
            f"{one.checkpoint.path}: is of {_training(one)}, but {other.checkpoint.name} of {_training(other)}",
            hint="these are averages of two trainings; name the folder of one",
        )


def _training(average: StoredAverage) -> str:
    start = f" and start {average.events[1]}" if average.events[1] else ""
    return f"an average that began at {average.began} with update interval {average.events[0]}{start}"


def _open_one(path: Path, root: Path) -> StoredAverage | None:
    """Return the stored average in a file, None where it is something else."""
    checkpoint = safetensors_file.open_checkpoint(path, ReadOptions())
    told = checkpoint.recipe.get("stored") if checkpoint.recipe else None
    if not isinstance(told, Mapping):
        return None
    try:
        return _parse(checkpoint, told, root)
    except (EmaError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: does not say rightly what is stored in it: {error}") from error


def _parse(checkpoint: Checkpoint, told: Mapping[str, Any], root: Path) -> StoredAverage:
    clock, began, updates = Time.parse(told["clock"]), Time.parse(told["began"]), told["updates"]
    events = str(told["update_interval"]), str(told.get("start", ""))
    interval = None if events[0] == EVERY else Time.parse(events[0])
    if interval is not None and (interval.unit is not clock.unit or not 0 < interval.value < math.inf):
        raise ValueError("its update interval is none of its clock's")
    if (
        type(updates) is not int
        or not 0 <= updates < _MAX_UPDATES
        or clock.unit is not began.unit
        or not 0 < began.value <= clock.value < math.inf
    ):
        raise ValueError("its clock and its updates do not fit together")
    times = [Time.parse(f"{value}{Unit(unit)}") for unit, value in told["clocks"].items()]
    clocks = {time.unit: Clock(Fraction(time.value), "file") for time in times}
    clocks[clock.unit] = Clock(Fraction(clock.value), "file")
    opened = replace(
        checkpoint,
        name=checkpoint.path.relative_to(root).as_posix(),
        trainer="EMA.store",
        averaged=None,  # which it is, and is meant to be
        recipe=None,
        progress=Progress(clocks),
        types=_types(told["types"], checkpoint),
    )
    law = _law(told, clock.unit)
    if law is None and (updates or clock != began):
        raise ValueError("the first copy is not where the average began")
    return StoredAverage(opened, law, clock, began, updates, events)


def _law(told: Mapping[str, Any], unit: Unit) -> Law | None:
    if told["average"] == FIRST:
        return None
    if "half_life" in told:
        half_life = Time.parse(told["half_life"])
        if half_life.unit is not unit:
            raise ValueError("its half-life is in another unit than its clock")
        return HalfLife(half_life.value)
    name, most = ("smoothing", 1.0) if "smoothing" in told else ("sigma_rel", UNIFORM_SIGMA_REL)
    value = float(told[name])
    if not 0 <= value <= most or (value == 0 and name == "sigma_rel"):
        raise ValueError(f"{name} {value} is out of range")
    return Smoothing(value) if name == "smoothing" else Power(value)


def _types(told: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's types of the tensors that are stored in wider ones, by name."""
    specs = checkpoint.weights.specs
    types = {}
    for dtype, names in told.items():
        if dtype not in ("F16", "BF16"):
            raise ValueError(f"{dtype} is not stored in a wider type")
        averaged = [name for name, spec in specs.items() if spec.dtype.averaged] if names == "all" else names
        types.update({name: DTYPES[dtype] for name in averaged if name in specs and specs[name].dtype.name == "F32"})
    return types


def make_stored_plan(stored: StoredRun, recipe: Recipe, *, allow_approximate: bool) -> Plan:
    """Return the weights of stored averages whose profile is nearest to the one that `recipe` asks for.

    Raises:
        RunError: where it differs by more than 5 % of its size, unless `allow_approximate`; for a unit or an interval
            that the averages were not made with.
        UsageError: for --start and --last, which the training has settled.
    """
    law = _asked(stored, recipe)
    recipe = replace(recipe, update_interval=stored.interval or EVERY)
    averages = _stopped(stored, recipe)
    from ema_cli.synthesis import WITHIN, Profiles, Stored

    moments = _moments(stored, averages)
    at = {moment.updates: number for number, moment in enumerate(moments)}
    grid = _half_lives(averages)
    profiles = Profiles(moments, [Stored(each.law, at[each.updates]) for each in averages], [law, *grid])
    found = profiles.solve(law)
    errors = [profiles.error(each) for each in grid]
    reach = {within: _ranges(grid, errors, within, stored.unit) for within in WITHIN}
    if found.error > WITHIN[1] and not allow_approximate:
        raise RunError(
            f"{stored.root}: {recipe.law} is out of reach: the nearest that the stored averages make differs by "
            f"{found.error:.1%}; within {WITHIN[1]:.0%} are {_listed(reach[WITHIN[1]])}",
            hint="ask for one of these, take the nearest with --allow-approximate, or store next time what is nearer: "
            "a half-life below it and one above, more often",
        )
    drawn = _drawn(profiles, law, found.weights.tolist())
    entries, before = [], averages[0].clock.value
    for each, weight in zip(averages, found.weights.tolist(), strict=True):
        if weight:
            entries.append(Entry(each.checkpoint, each.clock, Fraction(each.clock.value) - Fraction(before), weight))
            before = each.clock.value
    return Plan(
        stored.run,
        recipe,
        tuple(entries),
        (),
        approximation=Approximation(found.error, profiles.error(law), reach, *drawn),
    )


def _asked(stored: StoredRun, recipe: Recipe) -> Law:
    for option, value in (("--start", recipe.start), ("--last", recipe.last)):
        if value is not None:
            raise UsageError(
                f"{option}: stored averages begin where the training began them", hint="--stop says where to end"
            )
    if recipe.bias_correction:
        raise UsageError("--bias-correction: stored averages begin with the first copy", hint="leave it out")
    if recipe.unit not in (None, stored.unit):
        raise RunError(
            f"{stored.root}: the averages count in {stored.unit.plural}, and --half-life does not",
            hint=f"as --half-life 400{stored.unit}",
        )
    interval = recipe.interval if recipe.update_interval is not None else stored.interval
    if interval != stored.interval:
        raise RunError(
            f"{stored.root}: the averages were updated every {stored.interval or 'update'}, which --update-interval "
            "cannot change afterwards",
            hint="leave it out",
        )
    if recipe.half_life is not None:
        return HalfLife(recipe.half_life.value)
    if recipe.smoothing is not None:
        return Smoothing(recipe.smoothing)
    if recipe.profile != POWER or recipe.sigma_rel is None:
        raise UsageError(f"--profile {recipe.profile}: is for raw checkpoints", hint="leave out --from stored")
    return Power(recipe.sigma_rel)


def _stopped(stored: StoredRun, recipe: Recipe) -> list[StoredAverage]:
    """Return what was stored up to --stop; some average is needed, the first copy alone is none."""
    averages = list(stored.averages)
    if recipe.stop is not None:
        for each in averages:
            if each.law is not None and each.checkpoint.clock(recipe.stop.unit) is None:
                raise RunError(f"{each.checkpoint.path}: records no clock in {recipe.stop.unit.plural} for --stop")
        stop = recipe.stop.value
        averages = [e for e in averages if e.law is None or (e.checkpoint.clock(recipe.stop.unit) or 0) <= stop]
    if not any(each.law is not None and each.updates for each in averages):
        when = " up to --stop" if recipe.stop is not None else ""
        raise RunError(
            f"{stored.root}: nothing is stored after the first copy{when}",
            hint="store averages as the training goes on",
        )
    return _thinned(averages)


def _thinned(averages: list[StoredAverage]) -> list[StoredAverage]:
    """Leave out every other moment of the older half, again and again, where there are more than can be solved for."""
    while len(averages) > _MAX_STORED:
        moments = sorted({each.updates for each in averages if each.law is not None})
        half = len(moments) // 2
        left_out = set(moments[1:half:2])
        if not left_out:
            break
        averages = [each for each in averages if each.law is None or each.updates not in left_out]
    return averages


def _moments(stored: StoredRun, averages: Sequence[StoredAverage]) -> list[Moment]:
    from ema_cli.synthesis import Moment

    interval = None if stored.interval is None else Fraction(stored.interval.value)

    def due(clock: Fraction) -> Fraction:
        return clock if interval is None else floor(clock / interval) * interval

    began = Fraction(averages[0].began.value)
    found = {0: (began, due(began))}
    for each in averages:
        clock = Fraction(each.clock.value)
        known = found.setdefault(each.updates, (clock, due(clock)))
        if known[0] != clock:
            raise RunError(
                f"{each.checkpoint.path}: stored at {each.clock} after {each.updates} updates, as was another at "
                f"{Time(known[0], stored.unit)}",
                hint="these are averages of two trainings; name the folder of one",
            )
    moments = [
        Moment(float(clock), float(at), updates, None if interval is None else floor(clock / interval))
        for updates, (clock, at) in sorted(found.items())
    ]
    if any(after.clock <= before.clock for before, after in pairwise(moments)):
        raise RunError(
            f"{stored.root}: the updates of what is stored do not grow with its clocks",
            hint="these are averages of two trainings; name the folder of one",
        )
    return moments


def _half_lives(averages: Sequence[StoredAverage]) -> list[HalfLife]:
    """Return half-lives from an update to ten times the training, and an endless one, to see which are within reach."""
    began, ended = float(averages[0].began.value), float(averages[-1].clock.value)
    least, most = (ended - began) / max(each.updates for each in averages), 10 * ended
    values = dict.fromkeys(
        float(f"{least * 10 ** (step / _GRID):.2g}")
        for step in range(int(_GRID * 12))
        if least * 10 ** (step / _GRID) <= most
    )
    stored = [each.law.value for each in averages if isinstance(each.law, HalfLife)]
    return [HalfLife(value) for value in sorted({*values, *map(float, stored), math.inf})]


def _ranges(grid: Sequence[HalfLife], errors: Sequence[float], within: float, unit: Unit) -> list[tuple[Time, Time]]:
    """Return the half-lives with no larger error, from and to."""
    ranges: list[tuple[Time, Time]] = []
    previous = False
    for law, error in zip(grid, errors, strict=True):
        time = Time(law.value, unit)
        if error <= within:
            ranges = [*ranges[:-1], (ranges[-1][0], time)] if previous else [*ranges, (time, time)]
        previous = error <= within
    return ranges


def _listed(ranges: Sequence[tuple[Time, Time]]) -> str:
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges) or "none"


def _drawn(
    profiles: Profiles, law: Law, weights: Sequence[float]
) -> tuple[list[tuple[float, float]], list[float], list[float]]:
    """Return stretches of training time, and in each the share that was asked for and the one that is reached."""
    from ema_cli.synthesis import share_before

    moments = profiles.moments
    last, end = len(moments) - 1, moments[-1].clock
    step = _round_step((end - moments[0].clock) / _LEAST_BINS)
    before = math.floor(moments[0].clock / step)  # stretches in which there was no average
    edges = [step * number for number in range(before + 1, math.ceil(end / step - 1e-9))] + [end]

    def shares(each: Law | None, moment: int) -> Iterator[float]:
        before = 0.0
        for edge in edges:
            until = share_before(each, edge, moments, moment)
            yield until - before
            before = until

    asked = list(shares(law, last))
    reached = [0.0] * len(edges)
    for stored, weight in zip(profiles.stored, weights, strict=True):
        if weight:
            reached = [
                sum(pair) for pair in zip(reached, (weight * s for s in shares(stored.law, stored.moment)), strict=True)
            ]
    return list(zip([step * before, *edges[:-1]], edges, strict=True)), asked, reached


def _round_step(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... that is not above `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= most * (1 + 1e-9))
