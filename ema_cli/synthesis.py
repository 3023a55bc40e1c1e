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
from growing where profiles are nearly alike, and with them the rounding of what was stored. All profiles lie, within a
cell, in the span of a few shapes, one of each law: so a QR of the shapes, cell by cell, turns vectors over millions of
events into a few numbers a cell, with the same inner products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ema_cli.events import HalfLife, Law, Power, Smoothing

Vector = NDArray[np.float64]

_RIDGE = 1e-5
_EXACT_EVENTS = 128  # at the end of a cell, where a profile may change from one to the next
_NODES = 16  # in each stretch before, twice as long as the one after it
_PRUNED = (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)  # shares of the largest weight below which stored averages are left out
_PRUNED_ERROR = 1e-3  # relative; or a tenth more than without


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was stored: after `updates` events since the first copy, at `clock`.

    `due` is the training time that counts for half-lives: that of the events due by then.
    """

    clock: float
    due: float
    updates: int


@dataclass(frozen=True, slots=True)
class Stored:
    """An average as it was at a moment, by its number; `law` None is the first copy."""

    law: Law | None
    moment: int


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Weights of the stored averages, with sum 1, and how far the profile they make is from the one asked for.

    `error` is |P c - q| / |q|, over events.
    """

    weights: Vector
    error: float


class Profiles:
    """The profiles of stored averages in coordinates that keep inner products.

    Args:
        moments: from the first copy (0 updates) on, in order of time; the last is that of the averages asked for.
        stored: what there is.
        laws: those of the averages that may be asked for.
    """

    def __init__(self, moments: Sequence[Moment], stored: Sequence[Stored], laws: Sequence[Law]) -> None:
        self.moments = moments
        self.stored = stored
        known = [each.law for each in stored if each.law is not None]
        self._laws: list[Law] = list(dict.fromkeys([*known, *laws]))
        cells = [_Cell.of(before, after) for before, after in pairwise(moments)]
        shapes = [np.stack([cell.shape(law) for law in self._laws], axis=1) for cell in cells]
        self._axes: list[Vector] = [np.asarray(np.linalg.qr(shape, mode="r")) for shape in shapes]
        self._shares = [[cell.share(law) for law in self._laws] for cell in cells]
        self.matrix = np.stack([self._coordinates(each.law, each.moment) for each in stored], axis=1)

    def _coordinates(self, law: Law | None, moment: int) -> Vector:
        """Return the profile of an average at a moment: its weight at the first event, then cell by cell."""
        parts = [np.zeros(axes.shape[0]) for axes in self._axes]
        weight = 1.0
        if law is not None:
            column = self._laws.index(law)
            for cell in range(moment - 1, -1, -1):
                parts[cell] = weight * self._axes[cell][:, column]
                weight *= self._shares[cell][column]
        return np.concatenate([[weight], *parts])

    def solve(self, law: Law) -> Synthesis:
        """Return the weights that come nearest to an average of this law at the last moment."""
        wanted = self._coordinates(law, len(self.moments) - 1)
        best = self._nearest(wanted, np.arange(len(self.stored)))
        for share in _PRUNED:
            kept = np.flatnonzero(np.abs(best.weights) >= share * np.abs(best.weights).max())
            pruned = self._nearest(wanted, kept)
            if pruned.error <= max(1.1 * best.error, _PRUNED_ERROR):
                return pruned
        return best

    def errors(self, laws: Sequence[Law]) -> list[float]:
        """Return how near all stored averages together come to each of the laws."""
        last = len(self.moments) - 1
        every = np.arange(len(self.stored))
        return [self._nearest(self._coordinates(law, last), every).error for law in laws]

    def _nearest(self, wanted: Vector, kept: NDArray[np.intp]) -> Synthesis:
        """Solve with those that are kept: the last of them has the weight that the others leave."""
        profiles = self.matrix[:, kept]
        base = profiles[:, -1]
        others = profiles[:, :-1] - base[:, None]
        ridge = (_RIDGE * float(np.linalg.norm(wanted))) ** 2
        # |others x - (wanted - base)|^2 + ridge (|x|^2 + (1 - sum x)^2), by its normal equations.
        left = others.T @ others + ridge * (np.eye(len(kept) - 1) + 1.0)
        found = np.linalg.solve(left, others.T @ (wanted - base) + ridge) if len(kept) > 1 else np.zeros(0)
        weights = np.zeros(len(self.stored))
        weights[kept] = [*found, 1.0 - math.fsum(found)]
        error = np.linalg.norm(profiles @ weights[kept] - wanted) / np.linalg.norm(wanted)
        return Synthesis(weights, float(error))


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

    def _decay(self, law: HalfLife | Smoothing) -> float:
        """Return the logarithm of what one event keeps."""
        if isinstance(law, Smoothing):
            return math.log(law.value) if law.value else -math.inf
        gap = (self.after.due - self.before.due) / self._updates
        return -math.log(2) * gap / float(law.value) if law.value else -math.inf

    def share(self, law: Law) -> float:
        """Return how much of an average is left at the end of the cell of what it was at the beginning."""
        if isinstance(law, Power):
            return math.pow(self.before.clock / self.after.clock, law.gamma + 1)
        return math.exp(self._decay(law) * self._updates)

    def shape(self, law: Law) -> Vector:
        """Return the weights that an average has at its end for the nodes, times the roots of their own weights."""
        if isinstance(law, Power):
            # From the event before, which is due a little earlier than the first copy where the interval is long.
            step = (self.after.clock - self.before.due) / self._updates
            power = law.gamma + 1
            clocks = (self.before.due + step * self.nodes) / self.after.clock
            shape = clocks**power - np.maximum(clocks - step / self.after.clock, 0.0) ** power
        else:
            decay = self._decay(law)
            if decay == -math.inf:
                shape = (self.nodes == self._updates).astype(np.float64)
            else:
                shape = -math.expm1(decay) * np.exp(decay * (self._updates - self.nodes))
        return shape * np.sqrt(self.weights)


def share_before(law: Law | None, clock: float, moments: Sequence[Moment], moment: int) -> float:
    """Return how much of an average, as it was at a moment, the model had given it by an earlier `clock`."""
    end = moments[moment]
    if law is None or clock >= end.clock:
        return float(clock >= moments[0].clock)
    if clock < moments[0].clock:
        return 0.0
    if isinstance(law, Power):
        return math.pow(clock / end.clock, law.gamma + 1)
    if isinstance(law, HalfLife):
        return 2.0 ** -((end.clock - clock) / float(law.value)) if law.value else 0.0
    updates = np.interp(clock, [each.clock for each in moments], [each.updates for each in moments])
    return float(law.value ** (end.updates - updates))
