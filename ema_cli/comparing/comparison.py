"""Compare two checkpoints, or one with many: by tensor, by layer and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.comparing.distance import Distance, DistanceSums
from ema_cli.comparing.layers import order_by_layer
from ema_cli.comparing.measure import comparable_names, measure
from ema_cli.dataclass import dataclass
from ema_cli.errors import RunError
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.text import natural_key


@dataclass(frozen=True, slots=True)
class TensorDistance:
    """One tensor in two checkpoints.

    Attributes:
        specs: its spec in each.
        equal: whether all bytes are equal.
        distance: how far apart the values are; None where it is compared for equality only.
        non_finite: how many elements are NaN or infinite in each, except infinities that both have.
    """

    name: str
    specs: tuple[TensorSpec, TensorSpec]
    equal: bool
    distance: Distance | None
    non_finite: tuple[int, int]


@dataclass(slots=True)
class TensorTotal:
    """Several tensors, those with values taken as one vector.

    Attributes:
        sums: of all values.
        tensors, parameters: how many tensors and elements there are.
        equal: how many tensors are equal to the byte.
        has_values: whether one is compared by its values.
    """

    sums: DistanceSums
    tensors: int = 0
    parameters: int = 0
    equal: int = 0
    has_values: bool = False

    def add(self, tensor: TensorDistance, sums: DistanceSums) -> None:
        """Add a tensor."""
        self.sums.add(sums)
        self.tensors += 1
        self.parameters += tensor.specs[0].count
        self.equal += tensor.equal
        self.has_values = self.has_values or tensor.distance is not None

    @property
    def distance(self) -> Distance | None:
        """Return how far apart the values are; None where there are none."""
        return self.sums.distances()[0] if self.has_values else None

    @property
    def non_finite(self) -> tuple[int, int]:
        """Return how many elements are not finite in each."""
        return _non_finite(self.sums)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints, compared.

    Attributes:
        tensors: each tensor that both have, in natural order of the names.
        layers: by layer, in natural order.
        total: as a whole.
        only_one, only_other: names that only one of the two has.
        different: names whose shapes or kinds differ, so that they cannot be compared.
    """

    one: Checkpoint
    other: Checkpoint
    tensors: Sequence[TensorDistance]
    layers: Mapping[str, TensorTotal]
    total: TensorTotal
    only_one: Sequence[str]
    only_other: Sequence[str]
    different: Sequence[str]

    @property
    def warnings(self) -> list[str]:
        """Return which tensors hold values that are not finite."""
        return [
            f"'{tensor.name}' holds NaN or infinity: {tensor.non_finite[0]} in A, {tensor.non_finite[1]} in B"
            for tensor in self.tensors
            if any(tensor.non_finite)
        ]


def compare(
    one: Checkpoint, other: Checkpoint, *, threads: int = 1, progress: ProgressCallback = no_progress
) -> Comparison:
    """Compare two checkpoints in one pass: every byte is read once.

    Raises:
        RunError: where they have no tensor in common.
        CheckpointError: where one cannot be read, or changes meanwhile.
    """
    specs_one, specs_other = one.tensors.specs, other.tensors.specs
    layers = order_by_layer(comparable_names(one, [other]))
    if not layers:
        raise _nothing_to_compare(one, other)
    tensors: list[TensorDistance] = []
    total = TensorTotal(DistanceSums.zero(1))
    parts = {layer: TensorTotal(DistanceSums.zero(1)) for layer in layers.values()}
    for names, sums in measure(one, [other], list(layers), threads=threads, progress=progress):
        for name in names:
            tensor = TensorDistance(
                name=name,
                specs=(specs_one[name], specs_other[name]),
                equal=bool(sums.equal[0]),
                distance=sums.distances()[0] if specs_one[name].dtype.averaged else None,
                non_finite=_non_finite(sums),
            )
            tensors.append(tensor)
            total.add(tensor, sums)
            parts[layers[name]].add(tensor, sums)
    return Comparison(
        one=one,
        other=other,
        tensors=sorted(tensors, key=lambda tensor: natural_key(tensor.name)),
        layers=parts,
        total=total,
        only_one=_natural(name for name in specs_one if name not in specs_other),
        only_other=_natural(name for name in specs_other if name not in specs_one),
        different=_natural(name for name in specs_one if name in specs_other and name not in layers),
    )


def measure_layers(
    one: Checkpoint,
    others: Sequence[Checkpoint],
    layers: Mapping[str, str],
    *,
    threads: int = 1,
    progress: ProgressCallback = no_progress,
) -> tuple[list[Distance], dict[str, list[Distance]]]:
    """Measure how far `one` is from each of the others, in one pass: every byte is read once.

    Args:
        one: a checkpoint.
        others: the checkpoints that it is compared with.
        layers: the layer of each tensor that can be compared, in the order of the layers. Tensors that are compared
            for equality only do not count.
        threads: how many read side by side.
        progress: called with the bytes read so far, and in all.

    Returns:
        The distance of each as a whole, and by layer.
    """
    names = [name for name in layers if one.tensors.specs[name].dtype.averaged]
    total = DistanceSums.zero(len(others))
    parts = {layers[name]: DistanceSums.zero(len(others)) for name in names}
    for tied, sums in measure(one, others, names, threads=threads, progress=progress):
        for name in tied:
            total.add(sums)
            parts[layers[name]].add(sums)
    return total.distances(), {layer: part.distances() for layer, part in parts.items()}


def _nothing_to_compare(one: Checkpoint, other: Checkpoint) -> RunError:
    """Return the error for two checkpoints without a comparable tensor, with an example where a name is in both."""
    specs_one, specs_other = one.tensors.specs, other.tensors.specs
    shared = next((name for name in specs_one if name in specs_other), None)
    example = f": '{shared}' is {specs_one[shared]}, and {specs_other[shared]}" if shared is not None else ""
    return RunError(
        f"{one.name} and {other.name} have no tensor that can be compared{example}",
        hint="compare checkpoints of one model",
    )


def _natural(names: Iterable[str]) -> list[str]:
    return sorted(names, key=natural_key)


def _non_finite(sums: DistanceSums) -> tuple[int, int]:
    return int(sums.non_finite[0, 0]), int(sums.non_finite[1, 0])
