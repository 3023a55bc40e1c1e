"""How far apart checkpoints are, and whether evenly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def spacing(clocks: Sequence[float]) -> tuple[float, list[tuple[float, float]]]:
    """Return the usual distance between neighbours, and the stretches that are half as long again or longer."""
    steps = [(older, newer) for older, newer in pairwise(clocks) if newer > older]
    if not steps:
        return 0.0, []
    usual = Counter(newer - older for older, newer in steps).most_common(1)[0][0]
    return usual, [(older, newer) for older, newer in steps if newer - older >= usual * 1.5]


def regular(clocks: Sequence[float]) -> bool:
    """Return whether neighbours are everywhere as far apart; those of one clock are not looked at."""
    steps = [newer - older for older, newer in pairwise(clocks) if newer > older]
    return not steps or max(steps) - min(steps) <= max(map(abs, clocks)) * 1e-9
