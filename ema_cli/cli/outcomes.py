"""What `average` and `report` show, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.runs.warnings import Remarks

if TYPE_CHECKING:
    from ema_cli.averaging import Result
    from ema_cli.job import Job
    from ema_cli.passes import Pass
    from ema_cli.planning.plan import Plan


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
