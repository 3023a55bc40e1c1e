"""Tensors of which each rank has a part in a file of its own, beside the whole ones that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ema_cli.checkpoint import Tensors, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Box


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank has of a tensor: its number, the element of its own tensor at which that begins, and the box."""

    rank: int
    start: int
    box: Box


@dataclass(frozen=True, slots=True)
class CutTensors:
    """Tensors once more, as each rank has its parts of them: they are not read, but written with the whole ones.

    Attributes:
        specs: of the whole tensors, in the type in which the ranks have them.
        ranks: of each rank the tensors that it has.
        parts: of each tensor what each rank has of it. Several may have the same.
    """

    specs: Mapping[str, TensorSpec]
    ranks: Sequence[Tensors]
    parts: Mapping[str, Sequence[Part]]
