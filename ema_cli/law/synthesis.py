"""Any average from a few that were stored while the model trained: the weights with which they come nearest to it.

An average made online is a vector over update events, the model's weight in it at each of them: its *profile*. That
of the first copy is 1 at the first event. The events from the one before a moment of storage to the next are a *cell*:
u events with equal gaps. What an average of law L holds at the end of cell i is

    share(L, i) x (what it held at the end of the cell before)  +  shape(L, i), over the u events of the cell.

For a half-life h and a gap g, with s = 2 ** -(g / h): share = s ** u, shape_j = (1 - s) s ** (u - j), j = 1 ... u.
For a smoothing, s is that of one event. For a power-function profile (Karras et al. 2024, equation 121) over clocks t:
share = (t_0 / t_u) ** (gamma + 1), shape_j = (t_j ** (gamma + 1) - t_(j-1) ** (gamma + 1)) / t_u ** (gamma + 1).

Wanted are weights c with sum 1 that bring sum c_k p_k, p_k the profile of stored average k, nearest to the profile q of
the average asked for: least squares over events, |P c - q|^2 + (_RIDGE |q|)^2 |c|^2. The second term keeps the weights
from growing where profiles are nearly alike, and with them the rounding of what was stored. Of the vectors, which may
be millions of events long, only the inner products are needed, and those are sums over cells of (share of one) x
(share of the other) x (inner product of two shapes), of which there are as many as laws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ema_cli.law.law import Growing, LiveLaw, Steady

Vector = NDArray[np.float64]

_RIDGE = 1e-5
_FORGOTTEN = 1e-12  # of an average: what it holds of the training before that
_EXACT_EVENTS = 128  # at the end of a cell, where a profile may change from one to the next
_NODES = 16  # in each stretch before, twice as long as the one after it
_PRUNED = (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)  # shares of the largest weight below which stored averages are left out
WITHIN = (0.01, 0.05)  # relative errors: what is near, and what is near enough
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
    """Weights of the stored averages, with sum 1, and how far the profile they make is from the one asked for.

    `error` is |P c - q| / |q|, over events.
    """

    weights: Vector
    error: float


class Profiles:
    """The inner products of the profiles of stored averages, and of those that may be asked for.

    Args:
        moments: from the first copy (0 updates) on, in order of time; the last is that of the averages asked for.
        stored: what there is.
        laws: those of the averages that may be asked for.
    """

    def __init__(self, moments: Sequence[Moment], stored: Sequence[Stored], laws: Sequence[LiveLaw]) -> None:
        self.moments = moments
        self.stored = stored
        self._asked = {law: len(stored) + number for number, law in enumerate(dict.fromkeys(laws))}
        profiles = [*stored, *(Stored(law, len(moments) - 1) for law in self._asked)]
        self.products = _inner_products(moments, profiles)

    def solve(self, law: LiveLaw) -> Synthesis:
        """Return the weights that come nearest to an average of this law at the last moment, of few if that will do."""
        best = self._nearest(law, *self._every)
        for share in _PRUNED:
            kept = np.flatnonzero(np.abs(best.weights) >= share * np.abs(best.weights).max())
            pruned = self._nearest(law, *self._factored(kept))
            allowed = max(1.1 * best.error, _PRUNED_ERROR)
            allowed = min([allowed, *(within for within in WITHIN if best.error <= within)])
            if pruned.error <= allowed:
                return pruned
        return best

    def error(self, law: LiveLaw) -> float:
        """Return how near all stored averages together come to an average of this law at the last moment."""
        return self._nearest(law, *self._every).error

    @cached_property
    def _every(self) -> tuple[NDArray[np.intp], Vector, Vector]:
        return self._factored(np.arange(len(self.stored)))

    def _factored(self, kept: NDArray[np.intp]) -> tuple[NDArray[np.intp], Vector, Vector]:
        """Return numbers of stored averages, and the eigenvalues and eigenvectors of their inner products."""
        values, vectors = np.linalg.eigh(self.products[np.ix_(kept, kept)])
        return kept, np.maximum(values, 0.0), vectors

    def _nearest(self, law: LiveLaw, kept: NDArray[np.intp], values: Vector, vectors: Vector) -> Synthesis:
        """Return the weights for an average of this law, of the stored averages with these numbers alone."""
        asked = self._asked[law]
        size = math.sqrt(self.products[asked, asked])
        right = np.stack([self.products[kept, asked], np.ones(len(kept))], axis=1)
        both = vectors @ ((vectors.T @ right) / (values + (_RIDGE * size) ** 2)[:, None])
        # The multiplier of sum c = 1 follows from two solutions: c = x - y (sum x - 1) / sum y.
        found = both[:, 0] - both[:, 1] * (both[:, 0].sum() - 1) / both[:, 1].sum()
        weights = np.zeros(len(self.stored))
        weights[kept] = found
        difference = np.append(found, -1.0)
        numbers = np.append(kept, asked)
        squared = difference @ self.products[np.ix_(numbers, numbers)] @ difference
        return Synthesis(weights, math.sqrt(max(float(squared), 0.0)) / size)


def _inner_products(moments: Sequence[Moment], profiles: Sequence[Stored]) -> Vector:
    """Return the inner products of all profiles over events, as a square matrix."""
    laws: list[LiveLaw] = list(dict.fromkeys(each.law for each in profiles if each.law is not None))
    number = np.array([laws.index(each.law) if each.law is not None else -1 for each in profiles])
    end = np.array([each.moment for each in profiles])
    weights = np.ones(len(profiles))  # of what there was at the beginning of the cell that is looked at
    products = np.zeros((len(profiles), len(profiles)))
    for cell in range(len(moments) - 1, 0, -1):
        found = _Cell.of(moments[cell - 1], moments[cell])
        shapes = np.stack([found.shape(law) for law in laws], axis=1)
        within = shapes.T @ shapes
        (there,) = np.nonzero((number >= 0) & (end >= cell) & (weights > _FORGOTTEN))
        which, weight = number[there], weights[there]
        products[np.ix_(there, there)] += within[np.ix_(which, which)] * np.outer(weight, weight)
        weights[there] *= np.array([found.share(law) for law in laws])[which]
    # What is left is the weight of the first event.
    products += np.outer(weights, weights)
    return products


@dataclass(frozen=True, slots=True)
class _Cell:
    """The events between two moments, by nodes: an event each at the end, and before that such as stand for many.

    A sum over events is a sum over nodes with `weights`: Gauss and Legendre's, on stretches that double in length.
    """

    before: Moment
    after: Moment
    nodes: Vector  # numbers of events, from 1, in part between whole ones
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
        """Return how much of an average is left at the end of the cell of what it was at the beginning."""
        course = self._course(law)
        if isinstance(course, Growing):
            return math.pow(self.before.clock / self.after.clock, course.exponent)
        return math.exp(course.log_kept * self._updates)

    def shape(self, law: LiveLaw) -> Vector:
        """Return the weights that an average has at its end for the nodes, times the roots of their own weights."""
        course = self._course(law)
        shape = self._growing(course.exponent) if isinstance(course, Growing) else self._steady(course.log_kept)
        return np.asarray(shape * np.sqrt(self.weights))

    def _growing(self, exponent: float) -> Vector:
        # From the event before, which is due a little earlier than the first copy where the interval is long.
        step = (self.after.clock - self.before.due) / self._updates
        clocks = (self.before.due + step * self.nodes) / self.after.clock
        earlier = np.maximum(clocks - step / self.after.clock, 0.0)
        # Before the first event was the first copy, where that is seen at all.
        alone = self.weights == 1
        earlier[alone] = np.maximum(earlier[alone], self.before.clock / self.after.clock)
        return np.asarray(clocks**exponent - earlier**exponent)

    def _steady(self, log_kept: float) -> Vector:
        if log_kept == -math.inf:
            return np.asarray(self.nodes == self._updates, dtype=np.float64)
        return np.asarray(-math.expm1(log_kept) * np.exp(log_kept * (self._updates - self.nodes)))


def share_before(law: LiveLaw | None, clock: float, moments: Sequence[Moment], moment: int) -> float:
    """Return how much of an average, as it was at a moment, the model had given it by an earlier `clock`."""
    end = moments[moment]
    if law is None or clock >= end.clock:
        return float(clock >= moments[0].clock)
    if clock < moments[0].clock:
        return 0.0
    updates = np.interp(clock, [each.clock for each in moments], [each.due_updates for each in moments])
    return law.held(clock, float(updates), end.clock, end.due_updates)
