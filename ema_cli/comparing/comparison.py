"""Two checkpoints compared, and one with many: by tensor, by layer and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.comparing.distance import Distance, Sums, comparable, measure
from ema_cli.comparing.layers import order_by_layer
from ema_cli.errors import RunError
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.text import natural_key


@dataclass(frozen=True, slots=True)
class TensorDistance:
    """One tensor: its specs in the two checkpoints, whether all bytes are equal, and how far apart the values are.

    `distance` is None where it is compared for equality only. `not_finite`: how many values are not, in each.
    """

    name: str
    specs: tuple[TensorSpec, TensorSpec]
    equal: bool
    distance: Distance | None
    not_finite: tuple[int, int]


@dataclass(slots=True)
class Part:
    """Several tensors, those of floats taken as one vector: how many there are, and how many are equal to the byte."""

    sums: Sums
    tensors: int = 0
    parameters: int = 0
    equal: int = 0
    valued: bool = False

    def add(self, tensor: TensorDistance, sums: Sums) -> None:
        """Take a tensor in."""
        self.sums.add(sums)
        self.tensors += 1
        self.parameters += tensor.specs[0].count
        self.equal += tensor.equal
        self.valued = self.valued or tensor.distance is not None

    @property
    def distance(self) -> Distance | None:
        """Return how far apart the values are; None where there are none."""
        return self.sums.distances()[0] if self.valued else None

    @property
    def not_finite(self) -> tuple[int, int]:
        """Return how many values are not finite, in each."""
        return _not_finite(self.sums)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints, compared: tensor by tensor in natural order, by layer, and as a whole.

    What cannot be compared: the names that only one of them has, and those whose shapes or kinds differ.
    """

    one: Checkpoint
    other: Checkpoint
    tensors: Sequence[TensorDistance]
    layers: Mapping[str, Part]
    total: Part
    only_one: Sequence[str]
    only_other: Sequence[str]
    different: Sequence[str]

    @property
    def warnings(self) -> list[str]:
        """Return which tensors hold values that are not finite."""
        return [
            f"'{tensor.name}' holds NaN or infinity: {tensor.not_finite[0]} in A, {tensor.not_finite[1]} in B"
            for tensor in self.tensors
            if any(tensor.not_finite)
        ]


def compare(
    one: Checkpoint, other: Checkpoint, *, threads: int = 1, report: ProgressCallback = no_progress
) -> Comparison:
    """Return how far checkpoint `one` is from `other`, in one pass: every byte is read once.

    Raises:
        RunError: where they have no tensor in common.
        CheckpointError: where one cannot be read, or changes meanwhile.
    """
    specs = one.tensors.specs, other.tensors.specs
    shared = [name for name in specs[0] if name in specs[1]]
    layers = order_by_layer(comparable(one, [other]))
    if not layers:
        example = f": '{shared[0]}' is {specs[0][shared[0]]}, and {specs[1][shared[0]]}" if shared else ""
        raise RunError(
            f"{one.name} and {other.name} have no tensor that can be compared{example}",
            hint="compare checkpoints of one model",
        )
    tensors = []
    total, parts = Part(Sums.zero(1)), {layer: Part(Sums.zero(1)) for layer in layers.values()}
    for tied, sums in measure(one, [other], list(layers), threads=threads, report=report):
        for name in tied:
            distance = sums.distances()[0] if specs[0][name].dtype.averaged else None
            pair = specs[0][name], specs[1][name]
            tensors.append(TensorDistance(name, pair, bool(sums.equal[0]), distance, _not_finite(sums)))
            total.add(tensors[-1], sums)
            parts[layers[name]].add(tensors[-1], sums)
    return Comparison(
        one,
        other,
        sorted(tensors, key=lambda each: natural_key(each.name)),
        parts,
        total,
        _natural(name for name in specs[0] if name not in specs[1]),
        _natural(name for name in specs[1] if name not in specs[0]),
        _natural(name for name in shared if name not in layers),
    )


def measure_layers(
    one: Checkpoint,
    others: Sequence[Checkpoint],
    layers: Mapping[str, str],
    *,
    threads: int = 1,
    report: ProgressCallback = no_progress,
) -> tuple[list[Distance], dict[str, list[Distance]]]:
    """Return the distance of `one` from each of the others: as a whole, and by layer.

    `layers` gives the layer of each tensor that can be compared, and their order. All in one pass: every byte is read
    once. Tensors that are compared for equality only do not enter.
    """
    names = [name for name in layers if one.tensors.specs[name].dtype.averaged]
    total = Sums.zero(len(others))
    parts = {layers[name]: Sums.zero(len(others)) for name in names}
    for tied, sums in measure(one, others, names, threads=threads, report=report):
        for name in tied:
            total.add(sums)
            parts[layers[name]].add(sums)
    return total.distances(), {layer: found.distances() for layer, found in parts.items()}


def _natural(names: Iterable[str]) -> list[str]:
    return sorted(names, key=natural_key)


def _not_finite(sums: Sums) -> tuple[int, int]:
    return int(sums.not_finite[0, 0]), int(sums.not_finite[1, 0])
