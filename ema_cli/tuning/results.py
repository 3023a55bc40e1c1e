"""What was evaluated, and which candidate wins."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time
from ema_cli.manifest.types import CandidateRow
from ema_cli.tuning.settings import Setting

if TYPE_CHECKING:
    from ema_cli.planning.plan import Plan

LAST = "last"
"""The name of the last checkpoint among the candidates: it is no average, but the bar to beat."""


_AT = "-at-"


def series_name(setting: Setting, plan: Plan) -> str:
    """Return the name of a candidate of a series: 50ba-at-3000ba."""
    return f"{setting.name}{_AT}{plan.entries[-1].clock}"


def name_parts(name: str) -> tuple[Setting | None, Time | None]:
    """Return the setting in the name of a candidate, None of the last checkpoint; and the clock, as of a series.

    Raises:
        UsageError: for what is no name of one.
    """
    if name == LAST:
        return None, None
    setting, _, clock = name.partition(_AT)
    return Setting.parse(setting), Time.parse(clock) if clock else None


@dataclass(frozen=True, slots=True)
class Result:
    """What the evaluation of one candidate gave.

    Attributes:
        name: the setting, as 50ba or linear-500ba, or `LAST`; of a series with the clock, as 50ba-at-3000ba.
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
    def setting(self) -> Setting | None:
        """Return the setting, None of the last checkpoint."""
        return name_parts(self.name)[0]

    @property
    def clock(self) -> Time | None:
        """Return the clock at which the average ends, None of one that is of no series."""
        return name_parts(self.name)[1]

    @property
    def place(self) -> tuple[float, float]:
        """Return setting and clock as numbers to sort by; the last checkpoint is first."""
        setting, clock = name_parts(self.name)
        return -2.0 if setting is None else float(setting.number), 0.0 if clock is None else float(clock.value)

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

    What lies within the spread of the best, or within its own, is a tie: the shortest half-life of those wins, or
    window, or the smallest factor; of a series the latest clock of these; and the last checkpoint loses against any.
    """
    sign = -1 if maximize else 1
    able = [result for result in results if result.values]
    if not able:
        return None
    best = min(able, key=lambda result: sign * result.mean)
    ties = [result for result in able if abs(result.mean - best.mean) <= max(result.spread, best.spread)]
    averages = [result for result in ties if not result.is_last]
    if averages:
        return min(averages, key=lambda result: (result.place[0], -result.place[1]))
    return next((result for result in ties if result.name == LAST), best)
