"""Make candidates, as many at once as there is room for, in a private folder beside the output."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path

from ema_cli.averaging import perform
from ema_cli.dataclass import dataclass
from ema_cli.job import Job
from ema_cli.manifest.manifest import manifest_text, read_manifest
from ema_cli.manifest.sums import manifest_path, parse_sums, sums_path, sums_text
from ema_cli.manifest.types import TuneRow
from ema_cli.planning.plan import Plan
from ema_cli.preparing import prepare
from ema_cli.storage.output_stream import write_file
from ema_cli.storage.staging import Staging
from ema_cli.system import signals
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.tuning.results import LAST
from ema_cli.writing.files import publish
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import Target

# In the private folder, which is locked: who publishes into a locked folder waits for whoever holds the lock.
_CANDIDATES = "candidates"


@dataclass(slots=True)
class Workshop:
    """Candidates in the form of the output, each in a folder of its own under the output's own name.

    A winner is published as it lies there: its bytes are those that `average` writes.

    Attributes:
        staging: the private folder, which is removed at the end.
        target: the output.
        options: its form.
        most: how many candidates may lie there at once; None for as many as there is room for.
        made: the path of each candidate, by its name.
    """

    staging: Staging
    target: Target
    options: OutputOptions
    most: int | None = None
    threads: int | None = None
    max_memory: int | None = None
    made: dict[str, Path] = field(default_factory=dict)
    _batches: int = 0

    def room(self, plan: Plan) -> int:
        """Return for how many more candidates there is room, one at least: `make` refuses if not even that.

        The one that is best so far stays.

        Args:
            plan: one of them; all have one size.
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
        job = self._job(plans)
        perform(job, threads=self.threads, max_memory=self.max_memory, progress=progress)
        signals.note_nothing_published()
        self.made.update(zip(plans, (output.target.path for output in job.outputs), strict=True))

    def _job(self, plans: Mapping[str, Plan]) -> Job:
        self._batches += 1
        batch = Path(_CANDIDATES, str(self._batches))
        folders = [batch / name for name in plans]
        # Where there are several, the folder of the batch is published.
        self.staging.make_folder(folders[0] if len(folders) == 1 else batch.parent)
        targets = [
            replace(self.target, path=self.staging.folder / folder / self.target.path.name) for folder in folders
        ]
        return prepare(list(plans.values()), targets, self.options, force=False)

    def keep(self, name: str | None) -> None:
        """Remove all candidates but the one of that name."""
        for other in [made for made in self.made if made != name]:
            shutil.rmtree(self.made.pop(other).parent, ignore_errors=True)

    def publish(self, name: str, tune: TuneRow, *, force: bool) -> None:
        """Put a candidate where the output belongs, with a part `tune` in its manifest.

        Raises:
            OutputError: where the file system refuses.
        """
        path = self.made[name]
        _add_to_manifest(path, self.target.is_folder, tune)
        with self.staging.alone():
            publish(self.staging, self.target, path.relative_to(self.staging.folder), force=force)


def _add_to_manifest(average: Path, is_folder: bool, tune: TuneRow) -> None:
    """Write the manifest of an average over again with a part `tune`, and the sums with the manifest's new one."""
    path, sums = manifest_path(average, is_folder=is_folder), sums_path(average, is_folder=is_folder)
    manifest = read_manifest(path)
    rows = manifest.pop("tensors")
    manifest["tune"] = tune
    listed = parse_sums(sums.read_bytes(), str(sums))
    path.unlink()
    sums.unlink()
    listed[path.name] = write_file(path, manifest_text(manifest, iter(rows))).sha256
    write_file(sums, [sums_text(listed)])
