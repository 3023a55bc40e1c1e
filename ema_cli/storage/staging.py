"""All or nothing: what is written stays in a hidden folder beside the target until one rename publishes it.

The folder is locked while its process lives. After a SIGKILL or a power cut it is left behind; the next run in
that place finds it unlocked and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ema_cli.errors import OutputError, option
from ema_cli.storage.output_stream import WRITE_ELSEWHERE, output_errors
from ema_cli.system.signals import deferred_signals

_PREFIX = ".ema-cli-"
_NO_REPLACE, _EXCHANGE = 1, 2  # flags of renameat2(2)
_PATIENCE_SECONDS = 5  # a run publishes in less
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # what file systems without them say


class Staging:
    """A private folder beside `target`, as a context manager; whatever is in it at the end is removed.

    Raises:
        OutputError: where the file system refuses.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.parent = target.absolute().parent
        self.folder = Path()
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
            self.folder = self.parent / f"{_PREFIX}{secrets.token_hex(8)}"
            self.folder.mkdir(mode=0o700)
            try:
                lock = _lock_folder(self.folder, required=False)
            except OSError:
                with suppress(OSError):
                    self.folder.rmdir()
                raise
        # A finalizer: a signal can surface just before __exit__ holds signals back, and then the exit of the
        # interpreter must remove the folder.
        self._discard = weakref.finalize(self, _discard, self.folder, lock)

    def make_folder(self, name: Path) -> Path:
        """Make the folder `name` in this one, unless it is there already, and return its path."""
        folder = self.folder / name
        with output_errors(self.target):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold off other runs that publish into the same folder: a file's manifest and sums must not mix with theirs.

        Who holds that lock for longer than any run, as `flock FOLDER ema-cli ...` does, is not waited for.
        """
        with output_errors(self.parent):
            lock = os.open(self.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while _is_locked(lock) and time.monotonic() < deadline:
                time.sleep(0.01)
            yield
        finally:
            _close(lock)

    def publish_file(self, name: str, beside: Mapping[str, Path] | None = None, *, force: bool) -> None:
        """Rename the staged file `name` to the target: the commit point.

        Before it, what lies `beside` it: staged name -> path. What those replace is kept until the file is in place,
        and put back if it cannot be; a path that nothing is staged for is removed with the file that it told of.
        """
        undo: list[Callable[[], object]] = []
        with output_errors(self.target):
            _sync_folder(self.folder)
            with deferred_signals():
                try:
                    for staged, path in (beside or {}).items():
                        with output_errors(path):
                            self._put_beside(self.folder / staged, path, undo)
                    if beside:
                        _sync_folder(self.parent)  # the disk, too, is to have them first
                    _rename(self.folder / name, self.target, replace=force)
                except BaseException:
                    for step in reversed(undo):
                        with suppress(OSError):
                            step()
                    raise
                self._confirm()

    def _put_beside(self, staged: Path, path: Path, undo: list[Callable[[], object]]) -> None:
        """Put a staged file, if there is one, in the place of what is at `path`; add what takes back each step."""
        is_new, is_old = _is_there(staged), _is_there(path)
        if is_old:
            _refuse_irregular(path)
            if is_new and _rename_with(staged, path, _EXCHANGE):
                undo.append(lambda: _rename_with(staged, path, _EXCHANGE))
                return
            kept = _aside(self.folder, path)
            path.rename(kept)
            undo.append(lambda: kept.rename(path))
        if is_new:
            _rename(staged, path, replace=False)
            undo.append(lambda: path.rename(staged))

    def publish_folder(self, name: str, *, force: bool) -> None:
        """Rename the staged folder `name` to the target; with `force`, exchange it with what is there."""
        source = self.folder / name
        with output_errors(self.target):
            for folder, _, _ in os.walk(source):
                _sync_folder(Path(folder))
            with deferred_signals():
                try:
                    _rename(source, self.target, replace=False)
                except FileExistsError:
                    if not force:
                        raise
                    _exchange(source, self.target)
                self._confirm()

    def _confirm(self) -> None:
        try:
            _sync_folder(self.parent)
        except OSError as error:
            raise OutputError(
                f"is in place, but the disk does not confirm it: {error.strerror}",
                subject=self.target,
                hint=f"a power cut now may undo it; check the disk, and write it again with {option('force', True)}",
            ) from error


def remove_abandoned(parent: Path) -> None:
    """Remove the staging folders in `parent` that no living process holds."""
    for folder in parent.glob(f"{_PREFIX}{'[0-9a-f]' * 16}"):
        if not folder.is_dir() or folder.is_symlink():
            continue
        try:
            lock = _lock_folder(folder, required=True)
        except OSError:
            continue
        if lock >= 0:
            _discard(folder, lock)


def _discard(folder: Path, lock: int) -> None:
    """Remove a staging folder, as far as the file system lets us, and give back its lock.

    What was set aside in it goes back first, if the output that was to replace it, or the file that it lay beside, is
    still there, too: it was not published. Where it cannot, the folder stays.
    """
    with suppress(OSError):
        names = [entry.name for entry in folder.iterdir()]
        for name in names:
            place = folder.parent / name.removeprefix(f"{folder.name}-")
            unpublished = place.name != name and any(map(place.name.startswith, names))
            if unpublished and not _is_there(place):
                (folder / name).rename(place)
        shutil.rmtree(folder, ignore_errors=True)
    _close(lock)


def _aside(folder: Path, path: Path) -> Path:
    """Return where in a staging folder `path` is set aside.

    The name says where it belongs, and cannot be that of an output: whoever discards the folder puts it back, should
    nothing have taken its place.
    """
    return folder / f"{folder.name}-{path.name}"


def _lock_folder(folder: Path, *, required: bool) -> int:
    """Return a descriptor that holds the folder's lock; -1 if another holds it, or it was removed meanwhile.

    Some network file systems have no locks. There, unless the lock is `required`, the descriptor comes without:
    no other run can lock the folder either, so that none takes it for abandoned.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our open and our lock another run may have taken it for abandoned.
        if os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno in _NO_LOCKS and not required:
            return descriptor
        _close(descriptor)
        raise
    _close(descriptor)
    return -1


def _is_locked(descriptor: int) -> bool:
    """Take the lock of an open folder; say whether another has it. Without locks nobody has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _close(descriptor: int) -> None:
    """Close a folder's descriptor: an error then says nothing about what was written."""
    with suppress(OSError):
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder, which is no reason to refuse them.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        _close(descriptor)


def _is_there(path: Path) -> bool:
    """Say whether something has that name. os.path.lexists takes an unreadable disk for an empty one."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _rename(source: Path, target: Path, *, replace: bool) -> None:
    if replace:
        _refuse_irregular(target)
        source.replace(target)
    elif not _rename_with(source, target, _NO_REPLACE):
        # No such call on this system or file system: a check and a rename, with a moment between them.
        if _is_there(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _exchange(source: Path, target: Path) -> None:
    """Swap two folders; where the system cannot in one step, set the old one aside first."""
    if not stat.S_ISDIR(target.lstat().st_mode):
        raise OutputError("is not a folder", subject=target, hint=WRITE_ELSEWHERE)
    if not _rename_with(source, target, _EXCHANGE):
        target.rename(_aside(source.parent, target))
        source.rename(target)


def _refuse_irregular(target: Path) -> None:
    # A rename onto /dev/full would put a file in place of the device.
    if _is_there(target) and not stat.S_ISREG(target.lstat().st_mode):
        raise OutputError("is not a regular file", subject=target, hint=WRITE_ELSEWHERE)


def _rename_with(source: Path, target: Path, flag: int) -> bool:
    """Call Linux's renameat2; return False where it is not supported."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    at_cwd = -100
    if call(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))
