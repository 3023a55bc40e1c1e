"""Any average from a few that were stored while the model trained: the weights with which they come nearest to it.

The solution is the vector of weights c with sum 1 that brings sum c_k p_k, p_k the profile of stored average k
(`law/profile.py`), nearest to the profile q of the target, the average that is wanted. Where profiles are nearly alike,
weights grow, and with them the rounding of the stored tensors. So what is least is the sum of two relative errors,

    |P c - q| / |q|  +  sqrt(sum (c_k e_k)^2) / d,

e_k the rounding error of stored average k, and d what averaging changes (`law/rounding.py`). Norms over events count
each by the spread of the model around its averages at that time, where it is known: a model that has nearly come to
rest was far from there before. A profile has one element more, in the same unit: its mean age. So the sum is also right
for a model that moves straight on, whose average is off by what the mean age is.

A step toward the least sum is least squares, |P c - q|^2 + mu sum (c_k e_k)^2, with the mu for which the two errors of
the step before are equally steep. Where the e_k are not known, all are taken to be equal, and mu is such that they
count 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ema_cli.dataclass import dataclass
from ema_cli.law.law import LiveLaw
from ema_cli.law.live import NEAR, NEAR_ENOUGH
from ema_cli.law.profile import Moment, Stored, Vector, profile_sums

_RIDGE = 1e-5
_STEPS = 12  # toward the least sum of both errors
_LEAST_ROUNDING = 1e-9
_LEAST_SQUARE = 1e-12  # of the square that the larger spreads give
_PRUNED = (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)  # shares of the largest weight below which stored averages are left out
_PRUNED_ERROR = 1e-3  # relative; or a tenth more than without


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding does to stored averages, in one unit for all of them.

    Attributes:
        errors: of each stored average: the norm of its rounding error.
        changes: of each target: what averaging by its law changes.
        spreads: how far the model was from its averages at the beginning and the end of each cell.
    """

    errors: Vector
    changes: Mapping[LiveLaw, float]
    spreads: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Weights of the stored averages, with sum 1, and how far off their sum is.

    Attributes:
        weights: of each stored average.
        profile: the relative error of the profile with its mean age, |P c - q| / |q|.
        rounding: that of the rounding, against what averaging changes; None where it is not known.
    """

    weights: Vector
    profile: float
    rounding: float | None

    @property
    def error(self) -> float:
        """Return the sum of both errors, as far as they are known."""
        return self.profile + (self.rounding or 0.0)


class Profiles:
    """The inner products of the profiles of stored averages, and of possible targets.

    Args:
        moments: from the first copy (0 updates) on, in order of time; the last is that of the targets.
        stored: the averages that are there.
        laws: the laws of the targets.
        rounding: the rounding errors, None where they are not known.
    """

    def __init__(
        self,
        moments: Sequence[Moment],
        stored: Sequence[Stored],
        laws: Sequence[LiveLaw],
        rounding: Rounding | None = None,
    ) -> None:
        self.moments = moments
        self.stored = stored
        self.rounding = rounding
        self._targets = {law: len(stored) + number for number, law in enumerate(dict.fromkeys(laws))}
        profiles = [*stored, *(Stored(law, len(moments) - 1) for law in self._targets)]
        spreads = [(1.0, 1.0)] * (len(moments) - 1) if rounding is None else rounding.spreads
        sums = profile_sums(moments, profiles, spreads)
        self.products, self.ages = sums.products, sums.ages
        # A model that has come to rest was somewhere before: what nearly vanishes would be told as no number.
        squares = np.maximum(sums.squares, _LEAST_SQUARE * np.diagonal(sums.products))
        self._squares = np.where(squares > 0, squares, 1.0)  # of the first copy alone, which no update followed
        # The unit in which weights are solved for: the same rounding error for each.
        self._scales = np.ones(len(stored)) if rounding is None else rounding.errors / rounding.errors.max()

    def solve(self, law: LiveLaw) -> Synthesis:
        """Return the weights of the fewest stored averages that come about as near to the target as all of them."""
        best = self._nearest(law, *self._every)
        for share in _PRUNED:
            kept = np.flatnonzero(np.abs(best.weights) >= share * np.abs(best.weights).max())
            pruned = self._nearest(law, *self._factored(kept))
            allowed = max(1.1 * best.error, _PRUNED_ERROR)
            allowed = min([allowed, *(within for within in (NEAR, NEAR_ENOUGH) if best.error <= within)])
            if pruned.error <= allowed:
                return pruned
        return best

    def judge(self, law: LiveLaw, weights: Vector) -> Synthesis:
        """Return how far the sum of all stored averages with these weights is off from the target of this law."""
        target = self._targets[law]
        (used,) = np.nonzero(weights)
        numbers, difference = np.append(used, target), np.append(weights[used], -1.0)
        squared = float(difference @ self.products[np.ix_(numbers, numbers)] @ difference)
        drifted = float(difference @ self.ages[numbers]) / self._age(law)
        profile = math.sqrt(max(squared, 0.0) / self._squares[target] + drifted**2)
        if self.rounding is None:
            return Synthesis(weights, profile, None)
        rounded = float(np.linalg.norm(weights * self.rounding.errors))
        return Synthesis(weights, profile, rounded / self.rounding.changes[law])

    def _age(self, law: LiveLaw) -> float:
        """Return the mean age of the target of this law, but at least an update; 1 where none was made."""
        last, before = self.moments[-1], self.moments[0]
        step = (last.clock - before.clock) / max(last.updates, 1)
        return max(float(self.ages[self._targets[law]]), step) or 1.0

    def error(self, law: LiveLaw) -> float:
        """Return the relative error of the target of this law where all stored averages may be used."""
        return self._nearest(law, *self._every).error

    @cached_property
    def _every(self) -> tuple[NDArray[np.intp], Vector, Vector]:
        return self._factored(np.arange(len(self.stored)))

    def _factored(self, kept: NDArray[np.intp]) -> tuple[NDArray[np.intp], Vector, Vector]:
        """Return the numbers of stored averages, and the eigenvalues and eigenvectors of their inner products."""
        scales = self._scales[kept]
        values, vectors = np.linalg.eigh(self.products[np.ix_(kept, kept)] / np.outer(scales, scales))
        return kept, np.maximum(values, 0.0), vectors

    def _nearest(self, law: LiveLaw, kept: NDArray[np.intp], values: Vector, vectors: Vector) -> Synthesis:
        """Return the weights for the target of this law, of the stored averages with these numbers alone."""
        target = self._targets[law]
        squared_size, most, scales = self._squares[target], self.products[target, target], self._scales[kept]
        wanted = vectors.T @ (self.products[kept, target] / scales)
        ones = vectors.T @ (1 / scales)
        # In the unit of the profile: what a model that moves straight is off for one unit of age.
        pace = math.sqrt(squared_size) / self._age(law)
        ages, age = vectors.T @ (pace * self.ages[kept] / scales), pace * float(self.ages[target])

        def step(ridge: float) -> tuple[Vector, float, float]:
            """Return the weights along the eigenvectors, and both errors."""
            damped = values + ridge**2 * squared_size
            lean = ages / damped
            lean = lean / (1 + ages @ lean)  # the formula of Sherman and Morrison

            def solved(right: Vector) -> Vector:
                return np.asarray(right / damped - lean * (ages @ (right / damped)))

            # The multiplier of sum c = 1 follows from two solutions: c = x - y (sum x - 1) / sum y.
            along, across = solved(wanted + ages * age), solved(ones)
            along = along - across * ((along @ ones - 1) / (across @ ones))
            squared = values @ along**2 - 2 * (along @ wanted) + most
            squared = max(float(squared), 0.0) + float(along @ ages - age) ** 2
            return along, math.sqrt(squared / squared_size), unit * float(np.linalg.norm(along))

        unit = 0.0 if self.rounding is None else float(self.rounding.errors.max()) / self.rounding.changes[law]
        best = now = step(max(_RIDGE, unit))
        for _ in range(_STEPS if self.rounding is not None else 0):
            now = step(max(_RIDGE, unit * math.sqrt(now[1] / max(now[2], _LEAST_ROUNDING))))
            best = min(best, now, key=lambda errors: errors[1] + errors[2])
        weights = np.zeros(len(self.stored))
        weights[kept] = (vectors @ best[0]) / scales
        return self.judge(law, weights)
