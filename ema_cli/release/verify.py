"""Whether an average is what its manifest and its sums say: every file, every tensor, every number. Writes nothing.

Everything that does not hold is a problem, and all problems are returned; only what cannot be read is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from ema_cli.release.checks import all_problems
from ema_cli.release.published import Published
from ema_cli.release.snapshot import Snapshot, take_snapshot
from ema_cli.system.progress import ProgressCallback, no_progress


@dataclass(frozen=True, slots=True)
class Against:
    """What an average was compared with.

    Attributes:
        checkpoints: how many were averaged anew.
        tensors: how many tensors were compared.
        most_elements: how many elements of each tensor, at most; None for all of them.
        bytes_read: the bytes of checkpoints that were read.
        tensors_different, bytes_different: how many tensors, and how many bytes in all, are not as averaged anew.
    """

    checkpoints: int
    tensors: int
    most_elements: int | None
    bytes_read: int
    tensors_different: int
    bytes_different: int


@dataclass(frozen=True, slots=True)
class Verified:
    """A snapshot of an average, everything that does not hold of it, and what it was compared with."""

    snapshot: Snapshot
    problems: tuple[str, ...]
    against: Against | None = None

    @property
    def published(self) -> Published:
        """Return where the average lies."""
        return self.snapshot.published

    @property
    def files(self) -> int:
        """Return how many files were read."""
        return len(self.snapshot.files)

    @property
    def tensors(self) -> int:
        """Return how many tensors of the manifest were looked at."""
        if self.snapshot.manifest is None:
            return 0
        return len({name for opened in self.snapshot.opened.values() for name in opened.tensors.specs})

    @property
    def nbytes(self) -> int:
        """Return the bytes of all files that were read."""
        return sum(file.size for file in self.snapshot.files.values())


def verify(published: Published, *, threads: int = 1, report: ProgressCallback = no_progress) -> Verified:
    """Read an average once and return everything that does not hold of it.

    Args:
        published: where the average, its manifest and its sums lie.
        threads: how many files are read side by side.
        report: called with the bytes read and the bytes in all.

    Raises:
        CheckpointError: where a file or a folder cannot be read by this process, or changes meanwhile.
    """
    if not published.vouched:
        snapshot = Snapshot(published)
        problem = snapshot.problem(
            "" if published.is_folder else published.path.name,
            f"has neither a manifest ({published.manifest.name}) nor sums ({published.sums.name}), which say what it "
            "must be; average again, without --no-manifest",
        )
        return Verified(snapshot, (problem,))
    snapshot = take_snapshot(published, threads=threads, report=report)
    problems = all_problems(snapshot)
    for file in snapshot.files.values():
        file.check_unchanged()
    return Verified(snapshot, tuple(problems))
