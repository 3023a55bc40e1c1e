"""Make candidates, as many at once as there is room for, in a private folder beside the output."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.job import Job
from ema_cli.manifest.types import TuneRow
from ema_cli.planning.plan import Plan
from ema_cli.preparing import prepare
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.staging.local import Staging
from ema_cli.system.processors import default_threads
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.system.threads import thread_errors
from ema_cli.tuning.candidate import Candidate, make_candidates
from ema_cli.tuning.results import LAST
from ema_cli.writing.files import publish
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.replacing import check_target
from ema_cli.writing.target import Target

# In the private folder, which is locked: who publishes into a locked folder waits for whoever holds the lock.
_CANDIDATES = "candidates"


@dataclass(slots=True)
class Workshop:
    """Candidates in the form of the output, each in a folder of its own under the output's own name.

    A winner is published from there: its bytes are those that `average` writes.

    Attributes:
        staging: the private folder, which is removed at the end.
        target: the output.
        options: its form.
        most: how many candidates may lie there at once; None for as many as there is room for.
        made: the candidates that lie there, by name.
    """

    staging: Staging
    target: Target
    options: OutputOptions
    most: int | None = None
    threads: int | None = None
    max_memory: int | None = None
    made: dict[str, Candidate] = field(default_factory=dict)
    _batches: int = 0

    def room(self, plan: Plan) -> int:
        """Return for how many more candidates there is room, one at least: `make` refuses if not even that.

        The one that is best so far stays.

        Args:
            plan: the largest of them.
        """
        job = prepare([plan], self.target, self.options, force=True)
        fit = job.bytes_free // max(job.bytes_to_write, 1)
        return max(min(fit, (self.most or fit) - len(self.made)), 1)

    def make(self, plans: Mapping[str, Plan], progress: ProgressCallback) -> None:
        """Make the candidate of each plan, by name: all averages in one reading, and the last checkpoint as a copy.

        Raises:
            EmaError: as `averaging.perform`.
        """
        if LAST in plans and len(plans) > 1:
            self.make({LAST: plans[LAST]}, no_progress)  # among the averages it would be summed up like them
            plans = {name: plan for name, plan in plans.items() if name != LAST}
        made = make_candidates(self._job(plans), self.threads, self.max_memory, progress)
        self.made.update(zip(plans, made, strict=True))

    def _job(self, plans: Mapping[str, Plan]) -> Job:
        self._batches += 1
        batch = Path(_CANDIDATES, str(self._batches))
        folders = [batch / name for name in plans]
        # What `prepare` looks for: the folder around the only output, or around that of several.
        self.staging.make_folder(folders[0] if len(folders) == 1 else batch.parent)
        targets = [
            replace(self.target, path=self.staging.folder / folder / self.target.path.name) for folder in folders
        ]
        return prepare(list(plans.values()), targets, self.options, force=False)

    def keep(self, name: str | None) -> None:
        """Remove all candidates but the one of that name."""
        for other in [made for made in self.made if made != name]:
            shutil.rmtree(self.made.pop(other).path.parent, ignore_errors=True)

    def publish(self, name: str, plan: Plan, tune: TuneRow, *, force: bool) -> Remarks:
        """Put a candidate where the output belongs, with a part `tune` in its manifest; the others are removed.

        Return what is said of it.

        It is made again where it is not there, as it was evaluated before an interruption or there was no room to keep
        it, or where the evaluation has changed it.

        Raises:
            EmaError: as `averaging.perform`.
        """
        if name not in self.made or self.made[name].is_changed():
            self.keep(None)
            self.make({name: plan}, no_progress)
        candidate = self.made[name]
        with thread_errors(), ThreadPoolExecutor(1, "remove") as pool:
            others = pool.submit(self.keep, name)
            candidate.finish(tune, self.threads or default_threads())
            others.result()
        with self.staging.alone():
            check_target(self.target, [file for each in plan.run.checkpoints for file in each.files], force=force)
            publish(self.staging, self.target, candidate.path.relative_to(self.staging.folder), force=force)
        return candidate.remarks(self.target)
