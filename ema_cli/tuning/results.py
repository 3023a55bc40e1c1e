"""What was evaluated, and which candidate wins."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time
from ema_cli.manifest.types import CandidateRow
from ema_cli.tuning.factors import Factor, parse_factor

if TYPE_CHECKING:
    from ema_cli.planning.plan import Plan

LAST = "last"
"""The name of the last checkpoint among the candidates: it is no average, but the bar to beat."""


_AT = "-at-"


def series_name(plan: Plan) -> str:
    """Return the name of a candidate of a series: 50ba-at-3000ba."""
    return f"{plan.recipe.law.name}{_AT}{plan.entries[-1].clock}"


def name_parts(name: str) -> tuple[str, str | None]:
    """Return the half-life in the name of a candidate, and the clock, which only those of a series have."""
    half_life, at, clock = name.partition(_AT)
    return half_life, clock if at else None


@dataclass(frozen=True, slots=True)
class Result:
    """What the evaluation of one candidate gave.

    Attributes:
        name: the half-life, as 50ba, or `LAST`; of a series with the clock, as 50ba-at-3000ba; of an extrapolation the
            factor, as x0.5.
        values: its metric, once for each time it was evaluated; none where it failed.
        failed: why there is no metric.
        same_as: the name of the candidate with the same weights, whose values these are.
    """

    name: str
    values: tuple[float, ...] = ()
    failed: str | None = None
    same_as: str | None = None

    @property
    def is_last(self) -> bool:
        """Return whether this is the last checkpoint, or the same."""
        return LAST in (self.name, self.same_as)

    @property
    def half_life(self) -> Time | None:
        """Return the half-life, None of the last checkpoint, and of an extrapolation."""
        if self.name == LAST or self.factor is not None:
            return None
        return Time.parse(name_parts(self.name)[0])

    @property
    def factor(self) -> Factor | None:
        """Return how far a candidate extrapolates, None of any other."""
        return parse_factor(self.name)

    @property
    def turned(self) -> Time | Factor | None:
        """Return what is searched: the half-life, or the factor; None of the last checkpoint."""
        return self.factor or self.half_life

    @property
    def clock(self) -> Time | None:
        """Return the clock at which the average ends, None of one that is of no series."""
        clock = name_parts(self.name)[1]
        return None if clock is None else Time.parse(clock)

    @property
    def length(self) -> float:
        """Return the half-life, or the factor, as a number to sort by; that of the last checkpoint is 0."""
        if self.factor is not None:
            return self.factor.value
        return 0.0 if self.half_life is None else float(self.half_life.value)

    @property
    def place(self) -> tuple[float, float]:
        """Return half-life and clock as numbers to sort by; the last checkpoint is first."""
        return -2.0 if self.name == LAST else self.length, 0.0 if self.clock is None else float(self.clock.value)

    @property
    def mean(self) -> float:
        """Return the mean of the metric; NaN where there is none."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Return the sample standard deviation of the metric; 0 where it was evaluated once."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def to_dict(self) -> CandidateRow:
        """Return the result as the manifest has it."""
        row: CandidateRow = {"name": self.name, "values": list(self.values)}
        if self.failed is not None:
            row["failed"] = self.failed
        if self.same_as is not None:
            row["same_as"] = self.same_as
        return row

    @classmethod
    def from_dict(cls, row: CandidateRow) -> Result:
        """Read what `to_dict` returned."""
        return cls(row["name"], tuple(map(float, row["values"])), row.get("failed"), row.get("same_as"))


def choose(results: Sequence[Result], *, maximize: bool) -> Result | None:
    """Return the best result; None where none has a metric.

    What lies within the spread of the best, or within its own, is a tie: the shortest half-life of those wins, of a
    series the latest clock of these, and the last checkpoint loses against any.
    """
    sign = -1 if maximize else 1
    able = [result for result in results if result.values]
    if not able:
        return None
    best = min(able, key=lambda result: sign * result.mean)
    ties = [result for result in able if abs(result.mean - best.mean) <= max(result.spread, best.spread)]
    averages = [result for result in ties if not result.is_last]
    if averages:
        return min(averages, key=lambda result: (result.length, -result.place[1]))
    return next((result for result in ties if result.name == LAST), best)
