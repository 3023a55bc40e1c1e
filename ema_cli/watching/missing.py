"""Tell what was never seen: by the distance of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from statistics import median

from ema_cli.law.time import Time

_LONG = 1.5  # times the usual distance
_LEAST = 2  # distances, before any is usual


def spacing_gap(before: Iterable[Fraction], clock: Time) -> str | None:
    """Return what is missing before a new checkpoint, in words; None where the distance is a usual one.

    Args:
        before: the clocks of those that were looked at before.
        clock: that of the new one.
    """
    clocks = sorted(set(before))
    usual = [after - earlier for earlier, after in pairwise(clocks)]
    if len(usual) < _LEAST:
        return None
    distance, step = Fraction(clock.value) - clocks[-1], median(usual)
    if distance <= _LONG * step:
        return None
    missed = math.ceil(distance / step) - 1
    return (
        f"nothing was there to be read between {Time(clocks[-1], clock.unit)} and {clock}: about {missed} missing, "
        "by the distance of those before"
    )
