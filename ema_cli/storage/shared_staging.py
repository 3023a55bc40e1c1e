"""A staging folder that others see: workers of this run on other machines, other parts, and the next run."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from pathlib import Path

from ema_cli.storage.lease import Lease
from ema_cli.storage.staging import SHARED_PREFIX, Staging, discard


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
        self.tasks = self.folder / ".tasks"
        self.tasks.mkdir(parents=True, exist_ok=True)
        self._discard = weakref.finalize(self, discard, self.folder, -1)

    def folder_of(self, folder: Path) -> Path:
        """Return where others find a folder in this one."""
        return folder.absolute()

    def keep(self) -> None:
        """Leave the folder as it is at the end, for who goes on."""
        if isinstance(self._discard, weakref.finalize):
            self._discard.detach()
        self._discard = lambda: None

    def working(self, name: str) -> AbstractContextManager[object]:
        """Return what keeps the folder from being taken for abandoned, under a name of its own.

        Raises:
            OutputError: where the file system refuses.
        """
        return Lease(self.tasks / name)

    def publishing(self) -> AbstractContextManager[object]:
        """Return the claim on the publishing, which one at a time can have.

        Raises:
            Held: where another has it, when it is entered.
            OutputError: where the file system refuses.
        """
        return Lease(self.tasks / "publishing")

    def is_there(self) -> bool:
        """Return whether the folder still is there: who publishes removes it."""
        return self.tasks.is_dir()
