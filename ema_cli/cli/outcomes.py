"""What `average` and `report` show, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.runs.warnings import Remarks

if TYPE_CHECKING:
    from ema_cli.job import Job
    from ema_cli.law.time import Time
    from ema_cli.passes import Pass
    from ema_cli.planning.plan import Plan
    from ema_cli.result import Result
    from ema_cli.tuning.factors import Factors
    from ema_cli.tuning.half_lives import Range


@dataclass(frozen=True, slots=True)
class DryRun:
    """What `average --dry-run` shows: the job, its passes, and what is said of the run."""

    job: Job
    passes: Sequence[Pass]
    remarks: Remarks

    @property
    def memory(self) -> int:
        """Return about how many bytes of memory the process will take."""
        return max(each.memory for each in self.passes)

    @property
    def bytes_to_read(self) -> int:
        """Return how many bytes of tensors all passes read."""
        return sum(each.job.bytes_to_read for each in self.passes)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What `tune` will evaluate besides the last checkpoint.

    Attributes:
        half_lives: those that are named, or the range to search, of half-lives or of factors.
        series: the number of averages in a series of them; 0 where there is none.
        job: one of them as it would be written: all are of one size.
        plans: where nothing is evaluated, those that would be made first: of a range, its grid.
    """

    half_lives: Sequence[Time] | Range | Factors
    series: int
    job: Job
    plans: Sequence[Plan] = ()

    @property
    def most(self) -> int:
        """Return how many there are at most, the last checkpoint not counted."""
        if isinstance(self.half_lives, Sequence):
            return self.series or len(self.half_lives)
        return self.half_lives.tries

    @property
    def bytes_at_once(self) -> int:
        """Return the room that all of them take with the last checkpoint, if they lie there at once."""
        return self.job.bytes_to_write * (self.most + 1)


@dataclass(frozen=True, slots=True)
class Averaged:
    """What `average` shows: the plans, what was done, and what is said of the run."""

    plans: Sequence[Plan]
    result: Result
    remarks: Remarks


@dataclass(frozen=True, slots=True)
class Page:
    """What `report` shows: where the page is, its size, and which checkpoints are not in the folder `against`."""

    path: str
    nbytes: int
    against: str
    missing: tuple[str, ...]
