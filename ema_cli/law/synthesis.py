"""Any average from a few that were stored while the model trained: the weights with which they come nearest to it.

An average made online is a vector over update events, the model's weight in it at each of them: its *profile*. That
of the first copy is 1 at the first event. The events from the one before a moment of storage to the next are a *cell*:
u events with equal gaps. What an average of law L holds at the end of cell i is

    share(L, i) x (what it held at the end of the cell before)  +  shape(L, i), over the u events of the cell.

For a half-life h and a gap g, with s = 2 ** -(g / h): share = s ** u, shape_j = (1 - s) s ** (u - j), j = 1 ... u.
For a smoothing, s is that of one event. For a power-function profile (Karras et al. 2024, equation 121) over clocks t:
share = (t_0 / t_u) ** (gamma + 1), shape_j = (t_j ** (gamma + 1) - t_(j-1) ** (gamma + 1)) / t_u ** (gamma + 1).

The solution is the vector of weights c with sum 1 that brings sum c_k p_k, p_k the profile of stored average k,
nearest to the profile q of the target, the average that is wanted: least squares over events, |P c - q|^2 + (_RIDGE
|q|)^2 |c|^2. The second term keeps the weights from growing where profiles are nearly alike, and with them the
rounding of the stored tensors. The vectors may be millions of events long, but only their inner products are needed:
sums over cells of (share of one) x (share of the other) x (inner product of two shapes), and there is one shape for
each law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ema_cli.law.law import Growing, LiveLaw, Steady
from ema_cli.law.live import NEAR, NEAR_ENOUGH

Vector = NDArray[np.float64]

_RIDGE = 1e-5
_FORGOTTEN = 1e-12  # a share of an average that no longer counts
_EXACT_EVENTS = 128  # at the end of a cell, where a profile may change from one to the next
_NODES = 16  # in each stretch before, twice as long as the one after it
_PRUNED = (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)  # shares of the largest weight below which stored averages are left out
_PRUNED_ERROR = 1e-3  # relative; or a tenth more than without


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was stored: after `updates` events since the first copy, at `clock`.

    `due` is the training time that counts for half-lives, that of the events due by then; `passed` is their number,
    where it is not that of the updates: one update may stand for several.
    """

    clock: float
    due: float
    updates: int
    passed: int | None = None

    @property
    def due_updates(self) -> int:
        """Return how many updates were due by then: each keeps its share of a smoothing."""
        return self.updates if self.passed is None else self.passed


@dataclass(frozen=True, slots=True)
class Stored:
    """An average as it was at a moment, by its number; `law` None is the first copy."""

    law: LiveLaw | None
    moment: int


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Weights of the stored averages, with sum 1, and the relative error of their profile, |P c - q| / |q|."""

    weights: Vector
    error: float


class Profiles:
    """The inner products of the profiles of stored averages, and of possible targets.

    Args:
        moments: from the first copy (0 updates) on, in order of time; the last is that of the targets.
        stored: the averages that are there.
        laws: the laws of the targets.
    """

    def __init__(self, moments: Sequence[Moment], stored: Sequence[Stored], laws: Sequence[LiveLaw]) -> None:
        self.moments = moments
        self.stored = stored
        self._targets = {law: len(stored) + number for number, law in enumerate(dict.fromkeys(laws))}
        profiles = [*stored, *(Stored(law, len(moments) - 1) for law in self._targets)]
        self.products = _inner_products(moments, profiles)

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
        return Synthesis(weights, math.sqrt(max(squared, 0.0) / self.products[target, target]))

    def error(self, law: LiveLaw) -> float:
        """Return the relative error of the target of this law where all stored averages may be used."""
        return self._nearest(law, *self._every).error

    @cached_property
    def _every(self) -> tuple[NDArray[np.intp], Vector, Vector]:
        return self._factored(np.arange(len(self.stored)))

    def _factored(self, kept: NDArray[np.intp]) -> tuple[NDArray[np.intp], Vector, Vector]:
        """Return the numbers of stored averages, and the eigenvalues and eigenvectors of their inner products."""
        values, vectors = np.linalg.eigh(self.products[np.ix_(kept, kept)])
        return kept, np.maximum(values, 0.0), vectors

    def _nearest(self, law: LiveLaw, kept: NDArray[np.intp], values: Vector, vectors: Vector) -> Synthesis:
        """Return the weights for the target of this law, of the stored averages with these numbers alone."""
        target = self._targets[law]
        size = math.sqrt(self.products[target, target])
        right = np.stack([self.products[kept, target], np.ones(len(kept))], axis=1)
        both = vectors @ ((vectors.T @ right) / (values + (_RIDGE * size) ** 2)[:, None])
        # The multiplier of sum c = 1 follows from two solutions: c = x - y (sum x - 1) / sum y.
        solution = both[:, 0] - both[:, 1] * (both[:, 0].sum() - 1) / both[:, 1].sum()
        weights = np.zeros(len(self.stored))
        weights[kept] = solution
        return self.judge(law, weights)


def _inner_products(moments: Sequence[Moment], profiles: Sequence[Stored]) -> Vector:
    """Return the inner products of all profiles over events, as a square matrix."""
    laws: list[LiveLaw] = list(dict.fromkeys(profile.law for profile in profiles if profile.law is not None))
    law_of = np.array([-1 if profile.law is None else laws.index(profile.law) for profile in profiles])
    end = np.array([profile.moment for profile in profiles])
    weights = np.ones(len(profiles))  # of the average as it was at the end of the current cell
    products = np.zeros((len(profiles), len(profiles)))
    for number in range(len(moments) - 1, 0, -1):
        cell = _Cell.of(moments[number - 1], moments[number])
        shapes = np.stack([cell.shape(law) for law in laws], axis=1)
        within = shapes.T @ shapes
        (active,) = np.nonzero((law_of >= 0) & (end >= number) & (weights > _FORGOTTEN))
        active_laws, weight = law_of[active], weights[active]
        products[np.ix_(active, active)] += within[np.ix_(active_laws, active_laws)] * np.outer(weight, weight)
        weights[active] *= np.array([cell.share(law) for law in laws])[active_laws]
    # The rest is the weight of the first event.
    products += np.outer(weights, weights)
    return products


@dataclass(frozen=True, slots=True)
class _Cell:
    """The events between two moments, as nodes: the last 128 events are one each, an earlier node stands for many.

    A sum over events is a sum over nodes with `weights`: Gauss-Legendre quadrature on stretches that double in length.
    """

    before: Moment
    after: Moment
    nodes: Vector  # numbers of events, from 1; some lie between whole numbers
    weights: Vector

    @classmethod
    def of(cls, before: Moment, after: Moment) -> _Cell:
        count = after.updates - before.updates
        exact = np.arange(max(count - _EXACT_EVENTS, 0) + 1, count + 1, dtype=np.float64)
        nodes, weights = [exact], [np.ones(len(exact))]
        at, weight = np.polynomial.legendre.leggauss(_NODES)
        end, length = count - len(exact), _EXACT_EVENTS
        while end > 0:
            begin = max(end - length, 0)
            # The events begin + 1 ... end stand for the stretch from begin + 1/2 to end + 1/2.
            nodes.append(begin + 0.5 + (end - begin) * (at + 1) / 2)
            weights.append(weight * (end - begin) / 2)
            end, length = begin, 2 * length
        return cls(before, after, np.concatenate(nodes), np.concatenate(weights))

    @property
    def _updates(self) -> int:
        return self.after.updates - self.before.updates

    def _course(self, law: LiveLaw) -> Steady | Growing:
        time = (self.after.due - self.before.due) / self._updates
        return law.course(time, (self.after.due_updates - self.before.due_updates) / self._updates)

    def share(self, law: LiveLaw) -> float:
        """Return the share of the average at the beginning of the cell that is left at its end."""
        course = self._course(law)
        if isinstance(course, Growing):
            return math.pow(self.before.clock / self.after.clock, course.exponent)
        return math.exp(course.log_kept * self._updates)

    def shape(self, law: LiveLaw) -> Vector:
        """Return the weights of the nodes in an average at the end of the cell, times the roots of `self.weights`."""
        course = self._course(law)
        shape = self._growing(course.exponent) if isinstance(course, Growing) else self._steady(course.log_kept)
        return np.asarray(shape * np.sqrt(self.weights))

    def _growing(self, exponent: float) -> Vector:
        # Counted from the event before, which is due a little earlier than the first copy where the interval is long.
        step = (self.after.clock - self.before.due) / self._updates
        clocks = (self.before.due + step * self.nodes) / self.after.clock
        earlier = np.maximum(clocks - step / self.after.clock, 0.0)
        # Before the first event was the first copy; only single events are short enough to see it.
        alone = self.weights == 1
        earlier[alone] = np.maximum(earlier[alone], self.before.clock / self.after.clock)
        return np.asarray(clocks**exponent - earlier**exponent)

    def _steady(self, log_kept: float) -> Vector:
        if log_kept == -math.inf:
            return np.asarray(self.nodes == self._updates, dtype=np.float64)
        return np.asarray(-math.expm1(log_kept) * np.exp(log_kept * (self._updates - self.nodes)))


def share_before(law: LiveLaw | None, clock: float, moments: Sequence[Moment], moment: int) -> float:
    """Return the share of an average, as it was at a moment, that comes from models up to an earlier `clock`."""
    end = moments[moment]
    if law is None or clock >= end.clock:
        return float(clock >= moments[0].clock)
    if clock < moments[0].clock:
        return 0.0
    updates = np.interp(clock, [at.clock for at in moments], [at.due_updates for at in moments])
    return law.share_until(clock, float(updates), end.clock, end.due_updates)
