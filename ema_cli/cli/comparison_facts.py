"""What `compare` has to tell, as a program reads it."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from ema_cli.cli.comparison_sentences import side_warnings
from ema_cli.cli.json_facts import Facts

if TYPE_CHECKING:  # which load numpy
    from ema_cli.checkpoint import Checkpoint
    from ema_cli.comparing.comparison import Comparison, TensorTotal
    from ema_cli.comparing.distance import Distance

# The numbers of a distance, as JSON and as `Distance` call them.
_NUMBERS = {
    "distance": "distance",
    "relative_distance": "relative",
    "cosine": "cosine",
    "norm_a": "norm_one",
    "norm_b": "norm_other",
    "largest_difference": "largest",
}


def comparison_facts(comparison: Comparison) -> Facts:
    """Return a comparison; numbers that are not finite are None."""
    one, other = comparison.one.tensors.specs, comparison.other.tensors.specs
    return {
        "a": _side_facts(comparison.one),
        "b": _side_facts(comparison.other),
        "total": _part_facts(comparison.total),
        "layers": [{"name": layer, **_part_facts(part)} for layer, part in comparison.layers.items()],
        "tensors": [
            {
                "name": tensor.name,
                "dtypes": [spec.dtype.name for spec in tensor.specs],
                "shape": list(tensor.specs[0].shape),
                "equal": tensor.equal,
                **_distance_facts(tensor.distance, tensor.non_finite),
            }
            for tensor in comparison.tensors
        ],
        "only_in_a": list(comparison.only_one),
        "only_in_b": list(comparison.only_other),
        "different": [{"name": name, "a": str(one[name]), "b": str(other[name])} for name in comparison.different],
        "warnings": comparison.warnings,
    }


def _side_facts(checkpoint: Checkpoint) -> Facts:
    return {
        "path": checkpoint.name,
        "format": checkpoint.format,
        "bytes": checkpoint.nbytes,
        "tensors": len(checkpoint.tensors.specs),
        "warnings": side_warnings(checkpoint),
        "notes": list(checkpoint.notes),
    }


def _part_facts(part: TensorTotal) -> Facts:
    return {
        "tensors": part.tensors,
        "equal": part.equal,
        "parameters": part.parameters,
        **_distance_facts(part.distance, part.non_finite),
    }


def _distance_facts(distance: Distance | None, non_finite: tuple[int, int]) -> Facts:
    numbers: Facts = dict.fromkeys(_NUMBERS)
    for name, attribute in _NUMBERS.items() if distance is not None else ():
        value: float | None = getattr(distance, attribute)
        numbers[name] = value if value is not None and isfinite(value) else None
    return {**numbers, "non_finite": dict(zip("ab", non_finite, strict=True))}
