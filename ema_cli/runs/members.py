"""What the checkpoints in one folder are to each other: moments of a run, networks of one moment, or several runs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, UsageError, option
from ema_cli.formats.options import several_models_error
from ema_cli.formats.trainers.names import COPIES, name_clocks, stem
from ema_cli.formats.trainers.part_names import converter
from ema_cli.runs.beside import holds_tensors_of, kind_of
from ema_cli.text import lazy_pattern, natural_key, plural

_MOST_RUNS = 8  # that an error lists
# After these words a number tells trainings apart, of other data or another beginning. The last two may also count
# the checkpoints of one, so they tell only where one of their numbers has several.
_TRAINING = lazy_pattern(r"(?:^|[-_./])((?:kfold|fold|cv|seed|run|trial)s?)[-_=]?(\d+)(?!\d)", re.IGNORECASE)
_MAY_COUNT = ("run", "trial")


def component_of(root: Path, path: Path) -> str | None:
    """Return what a checkpoint is called in the folder of its moment; None if it has no such folder.

    The folder of a moment is the first on the way whose name has a clock, or the checkpoint's own if none has:
    `policy` for `step-10/policy`, `model` for `CKPT+2026-01-01/model.ckpt`.
    """
    parts = path.relative_to(root).parts
    clocked = _first_with_clock(parts)
    if not parts or clocked == len(parts) - 1:
        return None
    inner = parts[-1:] if clocked is None else parts[clocked + 1 :]
    return stem("/".join(inner))


def _first_with_clock(parts: Sequence[str]) -> int | None:
    return next((number for number, part in enumerate(parts) if name_clocks(part).clocks), None)


def check_one_run(root: Path, checkpoints: Sequence[Checkpoint]) -> None:
    """Check that checkpoints that were found in a folder are the moments of one run.

    The run of a checkpoint is the folder above the first part of its path with a clock; without a clock, its parent.
    For instance `a/step-10/model.pt` is of run `a`.

    Raises:
        UsageError: where each moment has several models, listing them.
        RunError: where there are several runs, listing them.
    """
    trainings = _trainings(checkpoints)
    # Without a clock, the user is asked anyhow, and may have given them one.
    if trainings and any(checkpoint.progress.clocks for checkpoint in checkpoints):
        raise _several_error(root, {training: len(names) for training, names in trainings.items()})
    runs: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        parts = checkpoint.path.relative_to(root).parts
        clocked = _first_with_clock(parts)
        at = len(parts) - 1 if clocked is None else clocked
        if at == len(parts) - 1 and COPIES.search(parts[at - 1] if at else ""):
            continue  # best/model.pt is a copy of a checkpoint such as step-10/model.pt
        runs.setdefault("/".join(parts[:at]), []).append(checkpoint)
    # a/model.pt, b/model.pt: a folder for each checkpoint, without a clock in any name.
    containers = (
        all(len(group) == 1 for group in runs.values())
        and len({checkpoint.path.name for checkpoint in checkpoints}) == 1
    )
    if containers:
        return
    if len(runs) == 1 or (len({kind_of(run) for run in runs}) == 1 and all(map(_is_one_moment, runs.values()))):
        _check_one_model(root, checkpoints)
    if len(runs) > 1:
        raise _several_error(root, {run: len(group) for run, group in runs.items()})


def _several_error(root: Path, runs: Mapping[str, int]) -> RunError:
    listed = ", ".join(f"{run or '.'} ({count})" for run, count in sorted(runs.items())[:_MOST_RUNS])
    return RunError(
        f"holds the checkpoints of {len(runs)} runs: {listed}",
        subject=root,
        hint="name the folder of one run, or the checkpoints themselves",
    )


def _trainings(checkpoints: Sequence[Checkpoint]) -> dict[str, list[str]]:
    """Return the trainings that names tell apart, as `fold0` and `fold1` do, with their checkpoints; none if one is."""
    trainings: dict[str, list[str]] = {}
    words = set()
    for checkpoint in checkpoints:
        found = _TRAINING.findall(checkpoint.name)
        words |= {word.lower().rstrip("s") for word, _ in found}
        trainings.setdefault(" ".join(f"{word}{number}" for word, number in found), []).append(checkpoint.name)
    trainings.pop("", None)
    counts = words <= {*_MAY_COUNT} and all(len(names) == 1 for names in trainings.values())
    return {} if len(trainings) < 2 or counts else trainings


def foreign_to_run(checkpoints: Sequence[Checkpoint]) -> list[tuple[Checkpoint, str]]:
    """Return what lies in the folder of a run and is another model, each with the reason.

    The run's checkpoints are of the most frequent kind of name. What shares its moment with one of them is foreign if
    most moments lack it, and what records no clock where they do, as the predictions of an evaluation.
    """
    kinds: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        kinds.setdefault(kind_of(checkpoint.name), []).append(checkpoint)
    run = max(kinds.values(), key=len, default=[])
    moments = {_moment(checkpoint): checkpoint for checkpoint in run}
    foreign = []
    for kind in kinds.values():
        for checkpoint in kind if kind is not run and 2 * len(kind) <= len(run) else ():
            own = moments.get(_moment(checkpoint))
            if own is not None and not holds_tensors_of(own.tensors.specs, checkpoint.tensors.specs):
                foreign.append((checkpoint, f"of one moment with {own.name}, with other tensors"))
    if len(run) > 1 and all(map(_has_clock, run)):
        foreign += [
            (checkpoint, f"records no clock, and has other tensors than {run[-1].name}")
            for checkpoint in checkpoints
            if not _has_clock(checkpoint) and not holds_tensors_of(run[-1].tensors.specs, checkpoint.tensors.specs)
        ]
    return foreign


def _has_clock(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.progress.clocks or name_clocks(checkpoint.name).clocks)


def _moment(checkpoint: Checkpoint) -> tuple[str, tuple[tuple[str, Fraction], ...]]:
    clocks = name_clocks(checkpoint.name).clocks
    return checkpoint.path.parent.as_posix(), tuple((str(unit), clock.value) for unit, clock in clocks.items())


def _is_one_moment(checkpoints: Sequence[Checkpoint]) -> bool:
    """Return whether checkpoints in one folder, none with a clock in its name, are of one moment."""
    clocks = {
        tuple(sorted((str(unit), clock.value) for unit, clock in checkpoint.progress.clocks.items()))
        for checkpoint in checkpoints
    }
    kinds = {kind_of(checkpoint.path.name) for checkpoint in checkpoints}
    return len(kinds) == len(checkpoints) and len(clocks - {()}) <= 1


def _check_one_model(root: Path, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise a UsageError if most folders of moments hold several models, which are told by their tensors."""
    moments: dict[str, dict[str, Checkpoint]] = {}
    for checkpoint in checkpoints:
        component = component_of(root, checkpoint.path) if checkpoint.path.parent != root else None
        if component is not None:
            moment = stem(checkpoint.path.as_posix()).removesuffix(component)
            moments.setdefault(moment, {})[component] = checkpoint
    several = [moment for moment in moments.values() if _are_several_models(list(moment.values()))]
    if 2 * len(several) > len(moments):
        names = list(dict.fromkeys(name for moment in several for name in moment))
        largest = max(several[-1], key=lambda name: several[-1][name].nbytes)
        raise several_models_error(root, names, "model" if "model" in names else largest)


def _are_several_models(checkpoints: Sequence[Checkpoint]) -> bool:
    return _is_one_moment(checkpoints) and len({frozenset(checkpoint.tensors.specs) for checkpoint in checkpoints}) > 1


def check_not_parts(root: Path, checkpoints: Sequence[Checkpoint]) -> None:
    """Check that the files of a folder whose own name has a clock are not the parts of one model.

    Raises:
        RunError: where they record no clock, have equal tensors, and differ in one number, from 0 or 1.
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    numbers = sorted(int(number) for number in map(only_number, names) if number)
    is_counted = len(names) > 1 and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])
    if not is_counted or len({kind_of(name) for name in names}) > 1 or not name_clocks(root.absolute().name).clocks:
        return
    if not any(checkpoint.progress.clocks for checkpoint in checkpoints):
        raise RunError(
            f"is one moment by its name, and its {len(names)} files differ in a number: {names[0]}, ...",
            subject=root,
            hint=f"parts of one model: put them together first, with {converter(names[0])}; checkpoints: name them",
        )


def training_warnings(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return a warning of checkpoints that are averaged together although their names tell several trainings apart."""
    trainings = _trainings(checkpoints)
    which = ", ".join(sorted(trainings, key=natural_key)[:_MOST_RUNS])
    return [f"the names tell several trainings apart ({which}), and one average takes all"] if trainings else []


def only_number(name: str) -> str | None:
    """Return the number in the name of a file, None if there is none or several."""
    found = re.findall("[0-9]+", stem(name))
    return found[0] if len(found) == 1 else None


def several_runs_error(runs: Mapping[Path, int]) -> UsageError:
    """Return the error for folders that hold runs, where checkpoints are named; with the lengths of the runs."""
    lengths = [plural(count, "checkpoint") for count in runs.values()]
    listed = ", ".join(f"{path} ({length})" for path, length in list(zip(runs, lengths, strict=True))[:_MOST_RUNS])
    return UsageError(
        f"is the folder of a run ({lengths[0]})" if len(runs) == 1 else f"are folders of runs: {listed}",
        subject=next(iter(runs)) if len(runs) == 1 else None,
        hint="name the folder of one run alone; a final model beside a run's checkpoints is named by its file",
    )


def same_clock_error(
    root: Path, checkpoints: Sequence[Checkpoint], kept: Checkpoint, other: Checkpoint, name: str, advice: str | None
) -> RunError:
    """Return the error for two checkpoints of one clock that are not one state.

    Args:
        root: the folder of the run.
        checkpoints: those of the run.
        kept: the one of the two that would enter.
        other: the other.
        name: the first tensor that differs.
        advice: how the two get clocks of their own, if they can.
    """
    has_name = [checkpoint.name for checkpoint in (kept, other) if name in checkpoint.tensors.specs]
    what = f"'{name}' differs" if len(has_name) == 2 else f"other tensors: only {has_name[0]} has '{name}'"
    fact = f"has the same clock as {kept.name}, but {what}"
    ways = [advice] if advice else []
    which = "one of the two kinds"
    if not advice and kind_of(kept.name) == kind_of(other.name):
        which = "one of two models"
        ways.append(
            "parts of one model: give the files of each moment a folder of their own, where they are put together"
            if kept.tensors.specs.keys().isdisjoint(other.tensors.specs)
            else f"parts of one model: put them together first, with {converter(other.path.name)}"
        )
    if not advice:
        choices = _choices(root, checkpoints, kept, other)
        choose = f"average {which}, with {', or '.join(choices)}"
        ways.append(choose if choices else "name the checkpoints of one kind, or of one run")
    return RunError(fact, subject=other.path, hint="; ".join(ways))


def _choices(root: Path, checkpoints: Sequence[Checkpoint], kept: Checkpoint, other: Checkpoint) -> list[str]:
    """Return the options that leave one of two kinds of checkpoints, either of them if that can be said."""
    components = [component_of(root, twin.path) for twin in (kept, other) if twin.path.parent != root]
    if len(set(components) - {None}) == 2:
        return [option("component", component) for component in components]
    patterns = [pattern_of(checkpoints, kept, other), pattern_of(checkpoints, other, kept)]
    return [option("exclude", pattern) for pattern in patterns if pattern is not None]


def pattern_of(checkpoints: Sequence[Checkpoint], kept: Checkpoint, other: Checkpoint) -> str | None:
    """Return a pattern for the names of the other's kind that leaves `kept` and its kind; None if there is none."""
    numbers = re.compile(r"([0-9]+)")
    mine, theirs = numbers.split(kept.name), numbers.split(other.name)
    same_kind = mine[::2] == theirs[::2]
    parts = [
        "*" if place % 2 and not (same_kind and mine[place] != text) else text.replace("[", "[[]")
        for place, text in enumerate(theirs)
    ]
    pattern = "".join(parts)
    matched = [checkpoint for checkpoint in checkpoints if fnmatch.fnmatchcase(checkpoint.name, pattern)]
    kinds = {kind_of(checkpoint.name) for checkpoint in matched}
    return None if kept in matched or kinds != {kind_of(other.name)} else pattern
