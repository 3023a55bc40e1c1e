"""Check that checkpoints are of one model: the same tensor names, shapes and dtypes, and the same settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import RunError, option


def first_differences(
    checkpoints: Sequence[Checkpoint],
    *,
    mixed_floats: bool = False,
    copied: Collection[str] = (),
    limit: int = 4,
) -> list[str]:
    """Return the first differences between the checkpoints and the newest one, in sentences.

    A sentence names both checkpoints, the tensor or setting, and both values.

    Args:
        checkpoints: the checkpoints, the newest last.
        mixed_floats: whether float dtypes may differ.
        copied: the names of tensors that may differ in every way, as only those of the newest are used.
        limit: the most sentences.
    """
    differences: list[str] = []
    newest = checkpoints[-1]
    theirs = newest.tensors.specs
    for checkpoint in checkpoints[:-1]:
        for setting in sorted({*checkpoint.adapter.values, *newest.adapter.values}):
            one, other = checkpoint.adapter.values.get(setting), newest.adapter.values.get(setting)
            if one != other:
                differences.append(f"{checkpoint.name}: its {setting} is {one}, but {other} in {newest.name}")
        ours = checkpoint.tensors.specs
        if ours is not theirs:
            for name in [*ours, *(name for name in theirs if name not in ours)]:
                if name not in copied and not _same_spec(ours.get(name), theirs.get(name), mixed_floats):
                    differences.append(_difference(name, checkpoint, newest))
                    if len(differences) >= limit:
                        break
        if len(differences) >= limit:
            return differences[:limit]
    return differences


def _same_spec(one: TensorSpec | None, other: TensorSpec | None, mixed_floats: bool) -> bool:
    if one == other or one is None or other is None:
        return one == other
    return mixed_floats and one.shape == other.shape and one.dtype.kind == other.dtype.kind == "float"


def check_same_model(
    checkpoints: Sequence[Checkpoint], *, mixed_floats: bool = False, copied: Collection[str] = ()
) -> None:
    """Check that all checkpoints have the same tensor names, shapes and dtypes, and the same settings.

    Raises:
        RunError: naming the first differences, with the exceptions of `first_differences`.
    """
    differences = first_differences(checkpoints, mixed_floats=mixed_floats, copied=copied)
    if differences:
        only_floats = not mixed_floats and not first_differences(checkpoints, mixed_floats=True, copied=copied, limit=1)
        raise RunError(
            "; ".join(differences),
            hint=f"average them in one float type: {option('dtype', 'float32')}"
            if only_floats
            else f"average checkpoints of one model; {option('start')} and {option('stop')} leave out others",
        )


def _difference(name: str, one: Checkpoint, other: Checkpoint) -> str:
    first, second = one.tensors.specs.get(name), other.tensors.specs.get(name)
    if second is None:
        return f"{one.name}: '{name}' is {first}, but {other.name} does not have it"
    if first is None:
        return f"{one.name}: '{name}' is missing, but {second} in {other.name}"
    return f"{one.name}: '{name}' is {first}, but {second} in {other.name}"
