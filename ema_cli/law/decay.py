"""The shares that laws give: how much of an average an update keeps, and how much of the model it takes in.

Each equation with its source. No torch, no numpy: plain float64.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

UNIFORM_SIGMA_REL = 12**-0.5
"""The width of a power-function profile with exponent 0: all of the training counts the same."""


def kept(elapsed: Fraction | float, half_life: Fraction | float) -> float:
    """Return the share of the old average that survives `elapsed` units: 2 ** -(elapsed / half_life).

    The half-life law of Composer's EMA, which writes it exp(-log(2) * update_interval / half_life).
    Half-life 0 keeps nothing, an infinite one everything; Composer fails on both.
    """
    if elapsed == 0 or half_life == math.inf:
        return 1.0
    if half_life == 0:
        return 0.0
    share: float = 2.0 ** -float(elapsed / half_life)
    return share


def admitted(elapsed: Fraction | float, half_life: Fraction | float) -> float:
    """Return 1 - `kept`, without the cancellation that a half-life far above `elapsed` would bring."""
    if elapsed == 0 or half_life == math.inf:
        return 0.0
    if half_life == 0:
        return 1.0
    return -math.expm1(-math.log(2) * float(elapsed / half_life))


def power_share(before: Fraction | float, clock: Fraction | float, gamma: float) -> float:
    """Return 1 - (before / clock) ** (gamma + 1): the share of a power-function profile between two clocks.

    Of all that lies up to the later one. Karras et al. 2024 (arXiv 2312.02696), equation 127.
    """
    if before <= 0:
        return 1.0
    return -math.expm1((gamma + 1) * math.log(before / clock))


@lru_cache(maxsize=256)
def power_exponent(sigma_rel: float) -> float:
    """Return the exponent gamma for which a power-function profile has the relative width `sigma_rel`.

    Solves equation 123 of Karras et al. 2024 by bisection, once for each width: the width falls as gamma grows.
    """
    low, high = 0.0, 1.0
    while _power_width(high) > sigma_rel:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _power_width(middle) > sigma_rel else (low, middle)
    return high


def _power_width(gamma: float) -> float:
    """Return sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), equation 123 of Karras et al. 2024."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
