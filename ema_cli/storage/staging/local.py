"""Publish a file or a folder as a whole, or not at all: one rename takes it out of a hidden folder beside the target.

The hidden folder is locked while its process lives. After a SIGKILL or a power cut it is left behind; the next run in
that place finds it unlocked and removes it.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ema_cli.errors import OutputError, option
from ema_cli.storage.output_stream import NewFile, output_errors
from ema_cli.storage.staging import renames
from ema_cli.storage.staging.folder_locks import close_folder, is_held_by_another, lock_folder, open_folder, sync_folder
from ema_cli.system.signals import deferred_signals, note_publication

if TYPE_CHECKING:
    from ema_cli.storage.around import Around

_PREFIX = ".ema-cli-"
SHARED_PREFIX = f"{_PREFIX}parts-"
TASKS = ".tasks"
"""The folder in a shared one in which tasks and parts tell of themselves."""
_PATIENCE_SECONDS = 5  # a run publishes in less
_SHARED_DAYS = 7  # parts of an average may wait in a queue, and those that are done wait for them


class Sender(Protocol):
    """Makes what sends a file to a store while it is made."""

    def __call__(self, path: Path, size: int, header: bytes, around: Around | None, *, summed: bool) -> NewFile:
        """Return the stream of a file, `path` being the one that it would have in the private folder.

        The other arguments are those of `store_stream.StoreStream`.
        """


class Staging:
    """A private folder beside `target`, as a context manager; it is removed at the end with all that is still in it.

    Attributes:
        target: the path that is published.
        parent: the folder around it.
        folder: the private folder.
        notes: what is worth knowing of the place.

    Raises:
        OutputError: where the file system refuses.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.parent = target.absolute().parent
        self.folder = Path()
        self.notes: list[str] = []
        self._discard: Callable[[], object] = lambda: None

    def __enter__(self) -> Staging:
        try:
            with deferred_signals(), output_errors(self.parent):
                remove_abandoned(self.parent)
                self._make_folder()
        except BaseException:
            # A signal that was held back surfaces here, before the body could clean up.
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred_signals():
            self._discard()

    def _make_folder(self) -> None:
        lock = -1
        while lock < 0:
            self.folder = self.parent / f"{_PREFIX}{os.urandom(8).hex()}"
            self.folder.mkdir(mode=0o700)
            try:
                lock = lock_folder(self.folder, required=False)
            except OSError:
                with suppress(OSError):
                    self.folder.rmdir()
                raise
        # A finalizer: a signal can surface just before __exit__ holds signals back, and then the exit of the
        # interpreter must remove the folder.
        self._discard = weakref.finalize(self, discard, self.folder, lock)

    def make_folder(self, name: Path) -> Path:
        """Make the folder `name` in this one, unless it is there already, and return its path."""
        folder = self.folder / name
        with output_errors(self.target):
            make_folders(folder)
        return folder

    def sender(self, objects: int) -> Sender | None:
        """Return what sends files to where they belong while they are made; None where a rename brings them there.

        Args:
            objects: how many files are sent at once.
        """
        return None

    def read_back(self, folder: Path, check: Callable[[Path], object]) -> None:
        """Check what was written into `folder`, in this one; at the latest before any of it is published.

        Args:
            folder: the folder.
            check: is called with the folder in which the files are; may raise.
        """
        check(folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold off other runs that publish into the same folder: a file's manifest and sums must not mix with theirs.

        If another process holds the lock for longer than any run does, as `flock FOLDER ema-cli ...`, go on without it.
        """
        with output_errors(self.parent):
            lock = open_folder(self.parent)
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while is_held_by_another(lock) and time.monotonic() < deadline:
                time.sleep(0.01)
            yield
        finally:
            close_folder(lock)

    def publish_file(self, name: str, sidecars: Mapping[str, Path] | None = None, *, force: bool) -> None:
        """Rename the staged file `name` to the target: the commit point.

        Its sidecars get their places first. Older ones there are kept until the file is in place, and put back if it
        cannot be; where no new one is staged, the older one goes with the older file.

        Args:
            name: that of the staged file.
            sidecars: the path of each sidecar, by the name under which it is staged, if it is.
            force: whether the target may be there already.

        Raises:
            OutputError: where the file system refuses; all is as it was then.
        """
        undo: list[Callable[[], object]] = []
        with output_errors(self.target):
            sync_folder(self.folder)
            with deferred_signals():
                try:
                    for staged, path in (sidecars or {}).items():
                        with output_errors(path):
                            self._put_sidecar(self.folder / staged, path, undo)
                    if sidecars:
                        sync_folder(self.parent)  # the disk, too, must have them first
                    renames.rename(self.folder / name, self.target, replace=force)
                except BaseException:
                    for step in reversed(undo):
                        with suppress(OSError):
                            step()
                    raise
                self._confirm()

    def _put_sidecar(self, staged: Path, path: Path, undo: list[Callable[[], object]]) -> None:
        """Replace the file at `path`, if there is one, by the staged file, if there is one.

        Each step adds to `undo` the call that takes it back.
        """
        is_new, is_old = renames.is_there(staged), renames.is_there(path)
        if is_old:
            renames.refuse_irregular(path)
            if is_new and renames.rename_with(staged, path, renames.EXCHANGE):
                undo.append(lambda: renames.rename_with(staged, path, renames.EXCHANGE))
                return
            kept = _aside(self.folder, path)
            path.rename(kept)
            undo.append(lambda: kept.rename(path))
        if is_new:
            renames.rename(staged, path, replace=False)
            undo.append(lambda: path.rename(staged))

    def publish_folder(self, name: str, *, force: bool, manifest: str = "", suffix: str = "") -> None:
        """Rename the staged folder `name` to the target; with `force`, exchange it with the folder there.

        Args:
            name: that of the staged folder.
            force: whether the target may be there already.
            manifest: the name of the manifest of a folder, and `suffix` what the name of a file's manifest adds to
                that of the file. One rename does it here; where there is none, these come in their order.
            suffix: see there.

        Raises:
            OutputError: where the file system refuses; the older folder is in its place then.
        """
        source = self.folder / name
        with output_errors(self.target):
            for folder, _, _ in os.walk(source):
                sync_folder(Path(folder))
            with deferred_signals():
                try:
                    renames.rename(source, self.target, replace=False)
                except FileExistsError:
                    if not force:
                        raise
                    renames.exchange_folders(source, self.target, _aside(self.folder, self.target))
                self._confirm()

    def _confirm(self) -> None:
        note_publication()
        try:
            sync_folder(self.parent)
        except OSError as error:
            raise OutputError(
                f"is in place, but the disk does not confirm it: {error.strerror}",
                subject=self.target,
                hint=f"a power cut now may undo it; check the disk, and write it again with {option('force', True)}",
            ) from error


def make_folders(folder: Path) -> None:
    """Make a folder and those around it, unless they are there; but none in which an output is made.

    Only who begins to make an output makes that one, and who ends removes it. Whoever stood still meanwhile would leave
    it behind once more.

    Raises:
        FileNotFoundError: where that one is gone.
        OSError: where the file system refuses.
    """
    if folder.is_dir():
        return
    if folder.name.startswith(_PREFIX):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the staging folders in `parent` that no living process holds, and shared ones unused for days."""
    for folder in parent.glob(f"{SHARED_PREFIX}{'[0-9a-f]' * 16}"):
        with suppress(OSError):
            names = ["", *os.listdir(folder)]
            with suppress(FileNotFoundError):  # one that was removed while somebody wrote into it has none
                names += [f"{TASKS}/{name}" for name in os.listdir(folder / TASKS)]
            used = max([(folder / name).stat().st_mtime for name in names])
            if not folder.is_symlink() and time.time() - used > _SHARED_DAYS * 86400:
                discard(folder, -1)
    for folder in parent.glob(f"{_PREFIX}{'[0-9a-f]' * 16}"):
        if not folder.is_dir() or folder.is_symlink():
            continue
        try:
            lock = lock_folder(folder, required=True)
        except OSError:
            continue
        if lock >= 0:
            discard(folder, lock)


def discard(folder: Path, lock: int) -> None:
    """Remove a staging folder, as far as the file system lets us, and give back its lock.

    If the output in it was not published, files and folders that were set aside for it go back to their places first.
    If one of them cannot, the staging folder stays.
    """
    with suppress(OSError):
        put_back(folder)
        shutil.rmtree(folder, ignore_errors=True)
    close_folder(lock)


def put_back(folder: Path) -> None:
    """Bring files and folders that were set aside in a staging folder back, if the output in it was not published."""
    names = [entry.name for entry in folder.iterdir()]
    for name in names:
        place = folder.parent / name.removeprefix(f"{folder.name}-")
        unpublished = place.name != name and any(map(place.name.startswith, names))
        if unpublished and not renames.is_there(place):
            (folder / name).rename(place)


def _aside(folder: Path, path: Path) -> Path:
    """Return where in a staging folder the file or folder at `path` is set aside.

    The name says where it belongs, and no output has such a name: whoever removes the staging folder can put it back.
    """
    return folder / f"{folder.name}-{path.name}"
