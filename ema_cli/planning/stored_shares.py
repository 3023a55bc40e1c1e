"""Which stretches of the training an average holds, and the sum of stored averages that stands for it: for a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ema_cli.law.law import LiveLaw
from ema_cli.law.profile import Moment, share_before
from ema_cli.law.synthesis import Profiles, Synthesis

_LEAST_STRETCHES = 10


def cut_in_stretches(moments: Sequence[Moment]) -> list[tuple[float, float]]:
    """Return at least ten stretches of the training, of a round length, as clocks (from, to).

    From 3 to 100 they are 0 to 10, 10 to 20, ... 90 to 100.
    """
    began, end = moments[0].clock, moments[-1].clock
    step = _round_down((end - began) / _LEAST_STRETCHES)
    before = math.floor(began / step)  # stretches in which there was no average
    edges = [step * number for number in range(before, math.ceil(end / step - 1e-9))] + [end]
    return list(pairwise(edges))


def _round_down(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... that is not above `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= most * (1 + 1e-9))


def shares_of(law: LiveLaw | None, moment: int, ends: Sequence[float], moments: Sequence[Moment]) -> list[float]:
    """Return the share of each stretch, by its end, in an average of this law as it was at a moment."""
    until = [share_before(law, end, moments, moment) for end in ends]
    return [share - before for before, share in pairwise([0.0, *until])]


def combined_shares(profiles: Profiles, nearest: Synthesis, ends: Sequence[float]) -> list[float]:
    """Return the share of each stretch, by its end, in the sum of the stored averages by their weights."""
    total = [0.0] * len(ends)
    for stored, weight in zip(profiles.stored, nearest.weights.tolist(), strict=True):
        if weight:
            shares = shares_of(stored.law, stored.moment, ends, profiles.moments)
            total = [sum(pair) for pair in zip(total, (weight * share for share in shares), strict=True)]
    return total
