"""The profiles of averages that were made online, as sums over the events of the training.

An average made online is a vector over update events, the model's weight in it at each of them: its *profile*. That
of the first copy is 1 at the first event. The events from the one before a moment of storage to the next are a *cell*:
u events with equal gaps. What an average of law L holds at the end of cell i is

    share(L, i) x (what it held at the end of the cell before)  +  shape(L, i), over the u events of the cell.

For a half-life h and a gap g, with s = 2 ** -(g / h): share = s ** u, shape_j = (1 - s) s ** (u - j), j = 1 ... u.
For a smoothing, s is that of one event. For a power-function profile (Karras et al. 2024, equation 121) over clocks t:
share = (t_0 / t_u) ** (gamma + 1), shape_j = (t_j ** (gamma + 1) - t_(j-1) ** (gamma + 1)) / t_u ** (gamma + 1).

The vectors may be millions of events long. Their inner products are sums over cells of (share of one) x (share of the
other) x (inner product of two shapes), and there is one shape for each law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ema_cli.dataclass import dataclass
from ema_cli.law.law import Growing, LiveLaw, Steady

Vector = NDArray[np.float64]

_FORGOTTEN = 1e-12  # a share of an average that no longer counts
_EXACT_EVENTS = 128  # at the end of a cell, where a profile may change from one to the next
_NODES = 16  # in each stretch before, twice as long as the one after it


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
class Sums:
    """Sums over the events of a training, each counted by the spread of the model at its time.

    Between two moments of storage the spread is not known. So differences between profiles are taken with the most that
    it may have been, and what they are compared with, the size of a target, with the least.

    Attributes:
        products: the inner products of all profiles, by the larger spread of both ends of each cell.
        squares: of each profile with itself, by a spread that falls from the larger end with the square of the time
            that is left, as a learning rate does that follows a cosine down to 0.
        ages: the mean ages of the profiles at the last moment.
    """

    products: Vector
    squares: Vector
    ages: Vector


def profile_sums(moments: Sequence[Moment], profiles: Sequence[Stored], spreads: Sequence[tuple[float, float]]) -> Sums:
    """Return the sums for profiles; `spreads` are those at the beginning and the end of each cell."""
    laws: list[LiveLaw] = list(dict.fromkeys(profile.law for profile in profiles if profile.law is not None))
    law_of = np.array([-1 if profile.law is None else laws.index(profile.law) for profile in profiles])
    end = np.array([profile.moment for profile in profiles])
    weights = np.ones(len(profiles))  # of the average as it was at the end of the current cell
    products, squares = np.zeros((len(profiles), len(profiles))), np.zeros(len(profiles))
    ages = np.zeros(len(profiles))
    for number in range(len(moments) - 1, 0, -1):
        cell = _Cell.of(moments[number - 1], moments[number])
        shapes = np.stack([cell.shape(law) for law in laws], axis=1)
        within = max(spreads[number - 1]) ** 2 * (shapes.T @ shapes)
        least = cell.least(*spreads[number - 1]) ** 2 @ shapes**2
        mean = shapes.T @ (np.sqrt(cell.weights) * (moments[-1].due - cell.clocks))
        (active,) = np.nonzero((law_of >= 0) & (end >= number) & (weights > _FORGOTTEN))
        active_laws, weight = law_of[active], weights[active]
        products[np.ix_(active, active)] += within[np.ix_(active_laws, active_laws)] * np.outer(weight, weight)
        squares[active] += least[active_laws] * weight**2
        ages[active] += mean[active_laws] * weight
        weights[active] *= np.array([cell.share(law) for law in laws])[active_laws]
    # The rest is the weight of the first event.
    first = spreads[0] if len(moments) > 1 else (1.0, 1.0)
    products += max(first) ** 2 * np.outer(weights, weights)
    squares += first[0] ** 2 * weights**2
    return Sums(products, squares, ages + weights * (moments[-1].due - moments[0].clock))


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
    def clocks(self) -> Vector:
        """Return the clocks of the nodes, as if events were evenly spaced."""
        return np.asarray(self.before.due + (self.after.due - self.before.due) / self._updates * self.nodes)

    @property
    def _updates(self) -> int:
        return self.after.updates - self.before.updates

    def _course(self, law: LiveLaw) -> Steady | Growing:
        time = (self.after.due - self.before.due) / self._updates
        return law.course(time, (self.after.due_updates - self.before.due_updates) / self._updates)

    def least(self, begin: float, end: float) -> Vector:
        """Return the least spread at the nodes, from those at both ends; see `Sums`."""
        passed = self.nodes / self._updates
        nearness = passed if end > begin else 1 - passed
        return np.asarray(min(begin, end) + abs(end - begin) * np.maximum(nearness, 0.0) ** 2)

    def share(self, law: LiveLaw) -> float:
        """Return the share of the average at the beginning of the cell that is left at its end."""
        course = self._course(law)
        if isinstance(course, Growing):
            return math.pow((self.before.clock - course.origin) / (self.after.clock - course.origin), course.exponent)
        return math.exp(course.log_kept * self._updates)

    def shape(self, law: LiveLaw) -> Vector:
        """Return the weights of the nodes in an average at the end of the cell, times the roots of `self.weights`."""
        course = self._course(law)
        shape = self._growing(course) if isinstance(course, Growing) else self._steady(course.log_kept)
        return np.asarray(shape * np.sqrt(self.weights))

    def _growing(self, course: Growing) -> Vector:
        # Counted from the event before, which is due a little earlier than the first copy where the interval is long.
        step = (self.after.clock - self.before.due) / self._updates
        whole = self.after.clock - course.origin
        clocks = np.maximum((self.before.due - course.origin + step * self.nodes) / whole, 0.0)
        earlier = np.maximum(clocks - step / whole, 0.0)
        # Before the first event was the first copy; only single events are short enough to see it.
        alone = self.weights == 1
        earlier[alone] = np.maximum(earlier[alone], (self.before.clock - course.origin) / whole)
        return np.asarray(clocks**course.exponent - earlier**course.exponent)

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
