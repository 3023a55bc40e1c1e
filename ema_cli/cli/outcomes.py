"""What `average` and `report` show, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.runs.warnings import Remarks

if TYPE_CHECKING:
    from ema_cli.job import Job
    from ema_cli.passes import Pass
    from ema_cli.planning.plan import Plan
    from ema_cli.result import Result
    from ema_cli.tuning.search import Searched


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

    @property
    def bytes_free(self) -> int | None:
        """Return how much room the disk has on which the outputs are made; None where they are sent to a store."""
        return None if self.job.is_sent else self.job.bytes_free


@dataclass(frozen=True, slots=True)
class Candidates:
    """What `tune` will evaluate besides the last checkpoint.

    Attributes:
        searched: the settings that are named, or the range of them to search.
        most: how many there are at most, the last checkpoint not counted.
        of_series: whether each is evaluated at several clocks.
        last: whether the last checkpoint is evaluated, too: not where only averages are stored.
        job: one of them as it would be written: all are of one size.
        remarks: what is said of the run.
        plans: where nothing is evaluated, those that would be made first: of a range, its grid.
    """

    searched: Searched
    most: int
    of_series: bool
    last: bool
    job: Job
    remarks: Remarks
    plans: Sequence[Plan] = ()

    @property
    def bytes_at_once(self) -> int:
        """Return the room that all take, if they lie there at once."""
        return self.job.bytes_to_write * self.count

    @property
    def count(self) -> int:
        """Return how many are evaluated at most, with the last checkpoint."""
        return self.most + self.last


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
