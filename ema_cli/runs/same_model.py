"""Check that checkpoints are of one model: the same tensor names, shapes and dtypes, and the same settings.

Those that are not like most of the others are named, each with its first difference.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Sequence
from glob import escape

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import RunError, option
from ema_cli.formats.trainers.adapters import BASE, may_be_one_base
from ema_cli.runs.beside import kind_of
from ema_cli.runs.ties import known_by_tie
from ema_cli.text import plural

_MAX_LINES = 3


def first_differences(
    checkpoints: Sequence[Checkpoint], *, mixed_floats: bool = False, copied: Collection[str] = ()
) -> list[str]:
    """Return one sentence for each checkpoint that is not of the model of most others, three at most.

    A sentence names both checkpoints, the first tensor or setting that differs, and both values. Of two models with as
    many checkpoints, that of the newest counts.

    Args:
        checkpoints: the checkpoints, the newest last.
        mixed_floats: whether float dtypes may differ.
        copied: the names of tensors that may differ in every way, as only those of the newest are used.
    """
    most, others = _split(checkpoints, mixed_floats, copied)
    lines = []
    for checkpoint in others[:_MAX_LINES]:
        first, *more = _differences(checkpoint, most[0], mixed_floats, copied)
        lines.append(f"{first} (and {plural(len(more), 'more difference')})" if more else first)
    if len(others) > _MAX_LINES:
        lines[-1] += f"; {plural(len(others) - _MAX_LINES, 'more checkpoint')} of another model than {most[0].name}"
    return lines


def check_same_model(
    checkpoints: Sequence[Checkpoint],
    *,
    mixed_floats: bool = False,
    copied: Collection[str] = (),
    base: Checkpoint | None = None,
) -> None:
    """Check that all checkpoints have the same tensor names, shapes and dtypes, and the same settings.

    Raises:
        RunError: with the sentences of `first_differences`, and a way to leave out the checkpoints that they name; the
            `base` is none that could be left out.
    """
    most, others = _split(checkpoints, mixed_floats, copied)
    if not others:
        return
    if not mixed_floats and not _split(checkpoints, True, copied)[1]:
        hint = f"average them in one float type: {option('dtype', 'float32')}"
    elif base is not None and others == [base] and most[0].adapter.values and not base.adapter.values:
        hint = f"average the models, with the adapters merged into that: {option('merge_into', str(base.path))}"
    elif others == [base]:
        hint = f"name the model that this training began with: {option('base', 'MODEL')}"
    else:
        patterns = _patterns([checkpoint.name for checkpoint in others], [checkpoint.name for checkpoint in most])
        hint = f"average checkpoints of one model; leave out others: {' '.join(option('exclude', p) for p in patterns)}"
    raise RunError("; ".join(first_differences(checkpoints, mixed_floats=mixed_floats, copied=copied)), hint=hint)


def _split(
    checkpoints: Sequence[Checkpoint], mixed_floats: bool, copied: Collection[str]
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """Return the checkpoints of the model that most have, newest first, and all others, oldest first."""
    models: list[list[Checkpoint]] = []
    for checkpoint in reversed(checkpoints):
        for model in models:
            if next(_differences(checkpoint, model[0], mixed_floats, copied), None) is None:
                model.append(checkpoint)
                break
        else:
            models.append([checkpoint])
    most = max(models, key=len, default=[])
    alike = set(most)
    return most, [checkpoint for checkpoint in checkpoints if checkpoint not in alike]


def _differences(one: Checkpoint, other: Checkpoint, mixed_floats: bool, copied: Collection[str]) -> Iterator[str]:
    """Yield the differences between two checkpoints, in sentences about the one."""
    settings, others_settings = one.adapter.values, other.adapter.values
    for setting in sorted({*settings, *others_settings} if settings != others_settings else ()):
        value, others_value = settings.get(setting), others_settings.get(setting)
        is_base = setting.rpartition("/")[2] == BASE
        if value != others_value and not (is_base and may_be_one_base(value, others_value)):
            yield f"{one.name}: its {setting} is {value}, but {others_value} in {other.name}"
    ours, theirs = one.tensors.specs, other.tensors.specs
    if ours is theirs:
        return
    tied: Collection[str] = ()
    if ours.keys() != theirs.keys():
        tied = {*known_by_tie(one.tensors, other.tensors), *known_by_tie(other.tensors, one.tensors)}
    for name in (*ours, *(name for name in theirs if name not in ours)):
        if name in tied:
            continue
        spec, others_spec = ours.get(name), theirs.get(name)
        if name not in copied and not _same_spec(spec, others_spec, mixed_floats):
            yield _sentence(name, one, other)


def _same_spec(one: TensorSpec | None, other: TensorSpec | None, mixed_floats: bool) -> bool:
    if one == other or one is None or other is None:
        return one == other
    return mixed_floats and one.shape == other.shape and one.dtype.kind == other.dtype.kind == "float"


def _sentence(name: str, one: Checkpoint, other: Checkpoint) -> str:
    first, second = one.tensors.specs.get(name), other.tensors.specs.get(name)
    if second is None:
        return f"{one.name}: '{name}' is {first}, but {other.name} does not have it"
    if first is None:
        return f"{one.name}: '{name}' is missing, but {second} in {other.name}"
    return f"{one.name}: '{name}' is {first}, but {second} in {other.name}"


def _patterns(names: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Return patterns that match all of `names` and none of those that are kept: as few as their kinds allow."""
    patterns: dict[str, None] = {}
    for name in names:
        kind = escape(kind_of(name)).replace("#", "*")
        alone = sum(kind_of(other) == kind_of(name) for other in names) == 1
        is_kept = any(fnmatch.fnmatchcase(other, kind) for other in kept)
        patterns[escape(name) if alone or is_kept else kind] = None
    return list(patterns)
