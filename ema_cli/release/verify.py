"""Check an average against its manifest and its checksums: every file, every tensor, every number. Writes nothing.

Each statement that does not hold is a problem, and all problems are returned; only an unreadable file is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from ema_cli.formats.output_file import whole_name
from ema_cli.release.checks import all_problems
from ema_cli.release.published import Published
from ema_cli.release.snapshot import Snapshot, take_snapshot
from ema_cli.system.progress import ProgressCallback, no_progress


@dataclass(frozen=True, slots=True)
class Against:
    """The extent and the result of a comparison with the checkpoints.

    Attributes:
        checkpoints: the number of checkpoints that were averaged again.
        tensors: the number of tensors that were compared.
        most_elements: the number of elements compared of each tensor, at most; None for all of them.
        bytes_read: the bytes of checkpoints that were read.
        tensors_different, bytes_different: the number of tensors, and of bytes in all, that differ from the repeated
            average.
    """

    checkpoints: int
    tensors: int
    most_elements: int | None
    bytes_read: int
    tensors_different: int
    bytes_different: int


@dataclass(frozen=True, slots=True)
class Verified:
    """A snapshot of an average, its problems, its comparison with the checkpoints if one was made, and notes."""

    snapshot: Snapshot
    problems: tuple[str, ...]
    against: Against | None = None
    notes: tuple[str, ...] = ()

    @property
    def published(self) -> Published:
        """Return the paths of the average."""
        return self.snapshot.published

    @property
    def files(self) -> int:
        """Return the number of files that were read."""
        return len(self.snapshot.files)

    @property
    def tensors(self) -> int:
        """Return the number of tensors that were checked; 0 without a manifest."""
        if self.snapshot.manifest is None:
            return 0
        opened = self.snapshot.opened.items()
        return len({whole_name(file, name) for file, checkpoint in opened for name in checkpoint.tensors.specs})

    @property
    def nbytes(self) -> int:
        """Return the total size of the files that were read, in bytes."""
        return sum(file.size for file in self.snapshot.files.values())


def verify(published: Published, *, threads: int = 1, progress: ProgressCallback = no_progress) -> Verified:
    """Read an average once and return its problems.

    Args:
        published: the paths of the average, its manifest and its checksums.
        threads: the number of files that are read at the same time.
        progress: called with the bytes read so far and the total.

    Raises:
        CheckpointError: if this process cannot read a file or a folder, or one changes meanwhile.
    """
    if not published.vouched:
        snapshot = Snapshot(published)
        problem = snapshot.problem(
            "" if published.is_folder else published.path.name,
            f"has neither a manifest ({published.manifest.name}) nor sums ({published.sums.name}), which say what it "
            "must be; average again, without --no-manifest",
        )
        return Verified(snapshot, (problem,))
    snapshot = take_snapshot(published, threads=threads, progress=progress)
    problems = all_problems(snapshot)
    for file in snapshot.files.values():
        file.check_unchanged()
    return Verified(snapshot, tuple(problems))
