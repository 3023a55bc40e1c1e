"""A staging folder that others see: workers of this run on other machines, other parts, and the next run."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Collection
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.storage.lease import LEASE_SECONDS, Lease
from ema_cli.storage.output_stream import output_errors
from ema_cli.storage.staging.local import SHARED_PREFIX, TASKS, Staging, discard, put_back

_BLOCK_BYTES = 512  # in which a system counts what a file takes


class SharedStaging(Staging):
    """A staging folder whose name others know.

    It outlives its run where that says `keep`, or is killed: whoever makes the same average goes on with what is there.

    Attributes:
        tasks: a folder in it for what is told between them.
    """

    def __init__(self, target: Path, digest: str) -> None:
        super().__init__(target)
        self._name = f"{SHARED_PREFIX}{digest[:16]}"
        self.tasks = Path()

    def _make_folder(self) -> None:
        self.folder = self.parent / self._name
        self.tasks = self.folder / TASKS
        if not self.folder.is_symlink():
            self.tasks.mkdir(parents=True, exist_ok=True)
        self._check_owner()
        self._discard = weakref.finalize(self, discard, self.folder, -1)

    def _check_owner(self) -> None:
        """Check that nobody else made the folder: its name can be guessed, and what lies in it is published.

        Raises:
            OutputError: where somebody did.
        """
        if self.folder.is_symlink() or self.folder.stat().st_uid != owner_of_files_in(self.tasks):
            raise OutputError(
                "belongs to somebody else, and what lies in it would be published",
                subject=self.folder,
                hint="let its owner remove it, or write to a folder of your own",
            )

    def clear(self, kept: Collection[Path]) -> None:
        """Remove what a run that died as it published had made of it: small files, a manifest. Who has the claim calls.

        Args:
            kept: the files that workers make, which stay.

        Raises:
            OutputError: where the file system refuses.
        """
        with output_errors(self.folder):
            put_back(self.folder)
            aside = f"{self.folder.name}-"
            for folder, inner, names in os.walk(self.folder):
                if folder == str(self.folder):
                    inner[:] = [name for name in inner if name != self.tasks.name and not name.startswith(aside)]
                for path in (Path(folder, name) for name in names if not name.startswith(aside)):
                    if path not in kept:
                        path.unlink()

    def folder_of(self, folder: Path) -> Path:
        """Return where others find a folder in this one."""
        return folder.absolute()

    def keep(self) -> None:
        """Leave the folder as it is at the end, for who goes on."""
        if isinstance(self._discard, weakref.finalize):
            self._discard.detach()
        self._discard = lambda: None

    def remove_empty(self) -> None:
        """Remove the folder if nothing was put into it yet."""
        with suppress(OSError):
            self.tasks.rmdir()
            self.folder.rmdir()

    def working(self, name: str) -> AbstractContextManager[object]:
        """Return what keeps the folder from being taken for abandoned, under a name of its own.

        Raises:
            OutputError: where the file system refuses.
        """
        return Lease(self.tasks / name)

    def publishing(self, *, seconds: float = LEASE_SECONDS) -> Lease:
        """Return the claim on the publishing, which one at a time can have: a part that found all, or an engine's run.

        Raises:
            Held: where another has it, when it is entered.
            OutputError: where the file system refuses.
        """
        return Lease(self.tasks / "publishing", seconds=seconds)

    def is_there(self) -> bool:
        """Return whether the folder still is there: who publishes removes it."""
        return self.tasks.is_dir()


def bytes_made_beside(target: Path) -> int:
    """Return how much room on the disk that takes which several have made of a target so far."""
    total = 0
    for folder in target.absolute().parent.glob(f"{SHARED_PREFIX}*"):
        made = folder / target.name
        for path in (made, *made.rglob("*")):
            with suppress(OSError):  # it is not there, or was just published
                total += path.lstat().st_blocks * _BLOCK_BYTES
    return total


def owner_of_files_in(folder: Path) -> int:
    """Return who owns what this process makes there, as the file system tells it: one of a network may map users."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid
