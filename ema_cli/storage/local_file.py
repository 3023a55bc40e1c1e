"""Local files that are read by range, with few descriptors open whatever their number.

There is no memory mapping: a file that is cut short under a mapping kills the process with SIGBUS; here it is an error
with a name. Network file systems read several times faster this way, too.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from ema_cli.errors import CheckpointError, Missing, Unreadable
from ema_cli.storage.info import Identity
from ema_cli.storage.source import HINT_REWRITTEN, NOT_REGULAR

_MAX_OPEN = 128


class LocalFile:
    """A regular file that must not change while we use it; an `InputFile`. Safe to read from several threads.

    Raises:
        CheckpointError: where no regular file is there, or it has changed since it was opened.
        Missing, Unreadable: where it is gone, or the file system refuses to open it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users = 0
        descriptor, status = self._open()
        self._identity = identity_of(status)
        self._size = status.st_size
        with _lock:
            _open_files[self] = descriptor
            if len(_open_files) > _MAX_OPEN:
                _close_idle()

    @property
    def path(self) -> Path:
        """Return where the file lies."""
        return self._path

    @property
    def size(self) -> int:
        """Return the size in bytes, as it was when the file was opened first."""
        return self._size

    @property
    def identity(self) -> Identity:
        """Return what tells the file, as it was when it was opened first, from every other."""
        return self._identity

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from byte `offset`."""
        descriptor = self._take_descriptor()
        try:
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise self.unread(offset, error.errno or errno.EIO) from error
        finally:
            self._give_back()
        if len(data) == size:
            return data
        out = bytearray(size)  # in several parts, or it ends
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`."""
        descriptor = self._take_descriptor()
        try:
            while len(out):
                count = os.preadv(descriptor, [out], offset)
                if count == 0:
                    raise self.unread(offset)
                offset += count
                out = out[count:]
        except OSError as error:
            raise self.unread(offset, error.errno or errno.EIO) from error
        finally:
            self._give_back()

    def check_unchanged(self) -> None:
        """Raise a CheckpointError if what lies at the path is not what was opened."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise refusal("disappeared while it was used", self.path, error) from error
        self._check_identity(status)

    def __getstate__(self) -> tuple[Path, tuple[int | str, ...], int]:
        """Return what another process needs to open the file when it reads it.

        Device and inode are left out: on another machine the same file system may have other numbers for them.
        """
        return Path(os.path.abspath(self._path)), self._identity.parts[2:], self._size

    def __setstate__(self, state: tuple[Path, tuple[int | str, ...], int]) -> None:
        self._path, parts, self._size = state
        self._identity = Identity(("", "", *parts))
        self._users = 0

    def unread(self, offset: int, number: int = 0) -> CheckpointError:
        """Return the error that a byte cannot be read: with the system's number for why, or where the file ends."""
        if number:
            error: CheckpointError = refusal(
                f"cannot be read at byte {offset}", self.path, OSError(number, os.strerror(number))
            )
        else:
            offset = min(offset, self._size_now())
            hint = f"something cut it short; {HINT_REWRITTEN}"
            error = CheckpointError(f"ends at byte {offset} while it is read", subject=self.path, hint=hint)
        error.at_byte = offset
        return error

    def _size_now(self) -> int:
        with _lock:
            descriptor = _open_files.get(self)
            return self._size if descriptor is None else os.fstat(descriptor).st_size

    def _check_identity(self, status: os.stat_result) -> None:
        now = identity_of(status)
        if self._identity.parts[:1] == ("",):
            now = Identity(("", "", *now.parts[2:]))
        if now != self._identity:
            raise CheckpointError("changed while it was used", subject=self.path, hint=HINT_REWRITTEN)

    def _take_descriptor(self) -> int:
        """Return a descriptor that stays open until it is given back."""
        with _lock:
            return self._taken()

    def _taken(self) -> int:
        """Return a descriptor that stays open until it is given back; the caller holds the lock."""
        descriptor = _open_files.get(self)
        if descriptor is None:
            descriptor, status = self._open()
            try:
                self._check_identity(status)
            except BaseException:
                os.close(descriptor)
                raise
            _open_files[self] = descriptor
        _open_files.move_to_end(self)
        self._users += 1
        if len(_open_files) > _MAX_OPEN:
            _close_idle()
        return descriptor

    def _give_back(self) -> None:
        with _lock:
            self._users -= 1
            if len(_open_files) > _MAX_OPEN:
                _close_idle()

    def _open(self) -> tuple[int, os.stat_result]:
        """Return a new descriptor of the file, and what the file system says of it."""
        descriptor = -1
        try:
            # Before it is opened, too: to open a device can be an action of its own.
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise CheckpointError(NOT_REGULAR, subject=self.path)
            # O_NONBLOCK: should a FIFO take its place now, nobody waits for a writer that never comes.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(NOT_REGULAR, subject=self.path)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            if isinstance(error, OSError):
                raise refusal("cannot be opened", self.path, error) from error
            raise
        return descriptor, status


@contextmanager
def held_open(files: Iterable[LocalFile]) -> Iterator[list[int] | None]:
    """Yield a descriptor of each file, to read from in the block only; raise a CheckpointError as `LocalFile`.

    None where more files than `_MAX_OPEN` would be in use at once: each thread may want a hundred, and the system has
    a limit.
    """
    taken: list[LocalFile] = []
    descriptors: list[int] = []
    too_many = False
    try:
        with _lock:  # once for all: a block of a fold takes dozens
            for file in files:
                descriptors.append(file._taken())
                taken.append(file)
                too_many = len(_open_files) > _MAX_OPEN  # and none of them is idle
                if too_many:
                    break
        yield None if too_many else descriptors
    finally:
        with _lock:
            for file in taken:
                file._users -= 1
            if len(_open_files) > _MAX_OPEN:
                _close_idle()


_lock = threading.Lock()
_open_files: OrderedDict[LocalFile, int] = OrderedDict()


def _close_idle() -> None:
    """Close the descriptors that were used longest ago, until few enough are open."""
    idle = (file for file in _open_files if file._users == 0)
    for file in list(islice(idle, len(_open_files) - _MAX_OPEN)):
        os.close(_open_files.pop(file))


def close_idle_files() -> None:
    """Close every file that nobody reads now: the room of a file that was removed is free only then."""
    with _lock:
        for file in [file for file in _open_files if file._users == 0]:
            os.close(_open_files.pop(file))


def identity_of(status: os.stat_result) -> Identity:
    """Return what tells a file, as the file system knows it now, or a folder, from every other."""
    if stat.S_ISDIR(status.st_mode):
        return Identity((status.st_dev, status.st_ino))
    return Identity((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


def refusal(what: str, path: Path, error: OSError) -> Missing | Unreadable:
    """Return the error that says what cannot be done, and why."""
    kind = Missing if error.errno == errno.ENOENT else Unreadable
    return kind(f"{what}: {error.strerror}", subject=path)
