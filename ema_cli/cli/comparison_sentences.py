"""What `compare` found, in sentences and columns for people. No rich."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from ema_cli.text import format_optional, plural, relative, size, some

if TYPE_CHECKING:
    from ema_cli.checkpoint import Checkpoint
    from ema_cli.comparing.comparison import Comparison, TensorTotal


def head(comparison: Comparison) -> list[str]:
    """Return what is compared with what."""
    lines = []
    for side, checkpoint in zip("AB", (comparison.one, comparison.other), strict=True):
        parts = (checkpoint.format, plural(len(checkpoint.tensors.specs), "tensor"), size(checkpoint.nbytes))
        lines.append(f"{side}: {checkpoint.name}: {', '.join(parts)}")
    total = comparison.total
    return [*lines, f"{plural(total.tensors, 'tensor')} compared, {total.equal:,} equal to the byte"]


def distance_cells(part: TensorTotal) -> list[str]:
    """Return a row of a comparison: how many tensors are equal, distance, relative, cosine, largest difference."""
    equal = f"{part.equal} of {part.tensors}"
    if any(part.non_finite):
        return [equal, "nan", "nan", "nan", "nan"]
    distance = part.distance
    if distance is None:
        return [equal, "-", "-", "-", "-"]
    return [
        equal,
        format_optional(_finite(distance.distance), "{:.4g}"),
        relative(_finite(distance.relative)),
        format_optional(_finite(distance.cosine), "{:.6f}"),
        format_optional(_finite(distance.largest), "{:.3g}"),
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def warnings(comparison: Comparison) -> list[str]:
    """Return what could not be compared, the first few of each kind, and the warnings of either checkpoint."""
    one, other = comparison.one.tensors.specs, comparison.other.tensors.specs
    lines = [
        f"only in {side}: {some([repr(name) for name in names])}"
        for side, names in (("A", comparison.only_one), ("B", comparison.only_other))
        if names
    ]
    if comparison.different:
        texts = [f"'{name}' is {one[name]} in A, {other[name]} in B" for name in comparison.different]
        lines.append(f"not comparable: {some(texts)}")
    for side, checkpoint in zip("AB", (comparison.one, comparison.other), strict=True):
        lines += [f"{side}: {warning}" for warning in dict.fromkeys(side_warnings(checkpoint))]
    return lines


def notes(comparison: Comparison) -> list[str]:
    """Return what else to know of either checkpoint."""
    sides = zip("AB", (comparison.one, comparison.other), strict=True)
    return [f"{side}: {note}" for side, checkpoint in sides for note in dict.fromkeys(checkpoint.notes)]


def side_warnings(checkpoint: Checkpoint) -> list[str]:
    """Return the warnings of a checkpoint that is compared; of what ema-cli made, its user knows."""
    averages = [f"averages: {checkpoint.averaged}"] if checkpoint.averaged and checkpoint.mark is None else []
    return [*averages, *checkpoint.warnings]
