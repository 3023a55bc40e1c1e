"""Folders that are there as a whole or not at all: those that hold a mark, the file that comes last and goes first.

On a disk one rename brings such a folder, and one takes it away. A store has no rename: there the mark alone says that
all of the folder is there. One process at a time holds the folder around them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, option
from ema_cli.storage.location import location, look_anew
from ema_cli.storage.output_stream import output_errors
from ema_cli.storage.staging.folder_locks import close_folder, lock_folder, sync_folder
from ema_cli.storage.staging.local import remove_abandoned


@dataclass(frozen=True, slots=True)
class MarkedFolders:
    """Marked folders side by side in one folder.

    Attributes:
        around: the folder that holds them.
        mark: the name of the file that each of them has.
    """

    around: Path
    mark: str

    @contextmanager
    def held(self, other: str, way_out: str) -> Iterator[list[str]]:
        """Hold the folder around them, which is made unless it is there, and removed where it is empty in the end.

        Args:
            other: what another process does that holds it, as "another watch writes these averages".
            way_out: what to do then, unless one chooses another output.

        Yields:
            what is worth knowing of the place.

        Raises:
            OutputError: where another process holds it, it cannot be made, or a store refuses the claim on it.
        """
        with output_errors(self.around):
            self.around.mkdir(exist_ok=True)
            lock = lock_folder(self.around, required=False)
        if lock < 0:
            hint = f"{way_out}, or choose another {option('o')}"
            raise OutputError(f"is in use: {other}", subject=self.around, hint=hint)
        try:
            yield []
        finally:
            with suppress(OSError):  # unless something is kept
                self.around.rmdir()
            close_folder(lock)

    def check_held(self) -> None:
        """Raise an OutputError if another process took the folder, as it may in a store where this one hung."""

    def paths(self) -> list[Path]:
        """Return the folders that are there, in no order.

        Raises:
            CheckpointError: where the storage does not say.
        """
        look_anew([self.around])
        entries = location(self.around).entries()
        return [entry.path for entry in entries if location(entry.path / self.mark).info().is_file]

    def move(self, path: Path, to: Path) -> None:
        """Give a folder another name."""
        with output_errors(path):
            path.rename(to)
            sync_folder(self.around)

    def remove(self, path: Path) -> None:
        """Remove a folder: it is gone as a whole, or there."""
        aside = path.with_name(f".{path.name}.removed-{os.urandom(4).hex()}")
        with output_errors(path):
            path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def remove_litter(self) -> None:
        """Remove what a process that was killed had not finished, or not removed yet."""
        remove_abandoned(self.around)
        remove_abandoned(self.around.absolute().parent)  # of what is published beside it
        for path in self.around.glob(".*.removed-*"):
            shutil.rmtree(path, ignore_errors=True)
