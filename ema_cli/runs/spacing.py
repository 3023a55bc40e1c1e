"""Measure the distances between the checkpoints of a run: the usual one, and gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from ema_cli.dataclass import dataclass

_GAP = Fraction(3, 2)  # of the usual distance: a longer one is a gap


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without a checkpoint: the positions of the checkpoints at its ends, and its length."""

    older: int
    newer: int
    length: Fraction | float


@dataclass(frozen=True, slots=True)
class Spacing:
    """The distances between neighbouring checkpoints, in the unit of their clocks.

    `usual` is the most frequent distance. `regular`: every distance is the usual one; only the last may be shorter,
    since a run may end between two saves. `gaps` are the distances of at least one and a half times the usual one.

    For instance clocks of 100, 200, 300 and 350 are regular, with a usual distance of 100 and no gap; clocks of 100,
    200 and 400 are not, and have a gap of 200.
    """

    usual: Fraction | float
    regular: bool
    gaps: tuple[Gap, ...]


def measure_spacing(clocks: Sequence[Fraction | float]) -> Spacing | None:
    """Return the spacing of checkpoints with these clocks, None if no two clocks differ.

    Args:
        clocks: one for each checkpoint, in one unit, never falling. Checkpoints of equal clocks count as one.
    """
    steps = [
        Gap(number, number + 1, newer - older)
        for number, (older, newer) in enumerate(pairwise(clocks))
        if newer > older
    ]
    if not steps:
        return None
    usual = Counter(step.length for step in steps).most_common(1)[0][0]
    regular = all(step.length == usual for step in steps[:-1]) and steps[-1].length <= usual
    return Spacing(usual, regular, tuple(step for step in steps if step.length >= usual * _GAP))
