"""How ZeRO cuts a model: from the tables of all ranks to the pieces of each parameter.

Stages 1 and 2 put all parameters of a group into one row, and cut the row into as many parts as there are ranks.
Stage 3 cuts each parameter by itself, and each rank puts its parts into one row. `zero_to_fp32.py` puts them together
in the same way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod

from ema_cli.dtypes import DType
from ema_cli.errors import OTHER_SAVES, CheckpointError
from ema_cli.formats.pieces.tensors import Run
from ema_cli.formats.zero.tables import Partition, Shape, Vector


class Row:
    """Vectors that are read as one row of elements.

    Args:
        vectors: each with the number of its file.
    """

    def __init__(self, vectors: Sequence[tuple[int, Vector]]) -> None:
        self._vectors = vectors
        self._ends = list(accumulate(vector.count for _, vector in vectors))
        self.count = self._ends[-1] if self._ends else 0

    def cut(self, begin: int, end: int) -> Iterator[Run]:
        """Yield the pieces with the elements from `begin` to `end`, which lie in the row."""
        number = bisect_right(self._ends, begin)
        while begin < end:
            file, vector = self._vectors[number]
            before = self._ends[number] - vector.count
            count = min(end, self._ends[number]) - begin
            size = vector.dtype.itemsize
            yield file, vector.start + (begin - before) * size, count * size
            begin += count
            number += 1


def dtype_of(partitions: Sequence[Partition]) -> DType:
    """Return the one type of all elements.

    Raises:
        CheckpointError: where they have several, or one that is not averaged.
    """
    first: DType | None = None
    for partition in partitions:
        for vector in partition.vectors:
            first = first or vector.dtype
            if vector.dtype != first or not vector.dtype.averaged:
                raise CheckpointError(
                    f"its weights are {vector.dtype.name}, and those before them {first.name}",
                    subject=partition.path,
                    hint=OTHER_SAVES,
                )
    if first is None:
        raise CheckpointError("holds no weights", subject=partitions[0].path)
    return first


def cut_rows(groups: Sequence[Mapping[str, Shape]], partitions: Sequence[Partition]) -> dict[str, list[Run]]:
    """Return the pieces of each parameter, as stages 1 and 2 cut them. The number of a file is that of its rank.

    Raises:
        CheckpointError: where the tables do not fit each other.
    """
    pieces: dict[str, list[Run]] = {}
    for partition in partitions:
        if len(partition.vectors) != len(groups):
            raise CheckpointError(
                f"holds {len(partition.vectors)} groups of weights, and the model states list {len(groups)}",
                subject=partition.path,
                hint=OTHER_SAVES,
            )
    for number, group in enumerate(groups):
        row = Row([(rank, partition.vectors[number]) for rank, partition in enumerate(partitions)])
        position = 0
        between = _between(partitions[0], number, len(group))
        for (name, shape), padding in zip(group.items(), between, strict=True):
            end = position + prod(shape)
            if end > row.count:
                raise _too_short(name, end, row.count, partitions[-1])
            _check_new(name, pieces, partitions[0])
            pieces[name] = list(row.cut(position, end))
            position = end + padding
        # How much is unused at the end follows from an alignment that no table has: less than it, or what is recorded.
        unused = sum(partition.unused[number] for partition in partitions if number < len(partition.unused))
        if row.count - position >= max(2 * len(partitions), unused + 1):
            raise _too_long(row.count, position, partitions[-1])
    return pieces


def cut_each(groups: Sequence[Mapping[str, Shape]], partitions: Sequence[Partition]) -> dict[str, list[Run]]:
    """Return the pieces of each parameter, as stage 3 cuts them. The number of a file is that of its rank.

    Raises:
        CheckpointError: where the tables do not fit each other.
    """
    ranks = len(partitions)
    rows = [Row([(rank, vector) for vector in partition.vectors]) for rank, partition in enumerate(partitions)]
    pieces: dict[str, list[Run]] = {}
    position = 0
    for group in groups:
        for name, shape in group.items():
            count = prod(shape)
            part = -(-count // ranks)
            short = next((rank for rank, row in enumerate(rows) if position + part > row.count), None)
            if short is not None:
                raise _too_short(name, position + part, rows[short].count, partitions[short])
            _check_new(name, pieces, partitions[0])
            pieces[name] = [
                piece
                for rank, row in enumerate(rows)
                for piece in row.cut(position, position + max(0, min(part, count - rank * part)))
            ]
            position += part
    long = next((rank for rank, row in enumerate(rows) if row.count != position), None)
    if long is not None:
        raise _too_long(rows[long].count, position, partitions[long])
    return pieces


def join_fragments(name: str, shape: Shape, fragments: Sequence[tuple[int, Vector]]) -> list[Run] | None:
    """Return the pieces of a parameter of which each rank has a fragment; None where they are too short.

    Args:
        name: the parameter.
        shape: its shape.
        fragments: those of all ranks, each with the number of its file.
    """
    row, count = Row(fragments), prod(shape)
    return list(row.cut(0, count)) if count <= row.count < count + len(fragments) else None


def _between(partition: Partition, number: int, parameters: int) -> Sequence[int]:
    """Return how many elements follow each parameter of a group unused."""
    if not partition.between:
        return (0,) * parameters
    if number >= len(partition.between) or len(partition.between[number]) != parameters:
        raise CheckpointError(
            f"its 'param_alignment_paddings' are not those of the {parameters} parameters of group {number}",
            subject=partition.path,
            hint=OTHER_SAVES,
        )
    return partition.between[number]


def _check_new(name: str, known: Mapping[str, object], partition: Partition) -> None:
    if name in known:
        raise CheckpointError(f"'{name}' is in two groups of parameters", subject=partition.path.parent)


def _too_short(name: str, end: int, count: int, partition: Partition) -> CheckpointError:
    return CheckpointError(
        f"its weights end before '{name}' does: after {count} of {end} elements",
        subject=partition.path,
        hint=f"{OTHER_SAVES}; weights that DeepSpeed offloaded to NVMe are not in it",
    )


def _too_long(count: int, position: int, partition: Partition) -> CheckpointError:
    return CheckpointError(
        f"its weights have {count} elements, and the model states list {position}",
        subject=partition.path,
        hint=OTHER_SAVES,
    )
