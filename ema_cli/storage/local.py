"""Regular files read by range, with few descriptors open whatever the number of files. No memory mapping.

A file that is cut short under a mapping kills the process with SIGBUS; here it is an error with a name. Network
file systems read several times faster this way, too.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path

from ema_cli.errors import CheckpointError

_MAX_OPEN = 128


class InputFile:
    """An input that must not change while we use it. Safe to read from several threads.

    Raises:
        CheckpointError: for what is not a regular file, cannot be read, or has changed since it was opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users = 0
        self._identity: tuple[int, int, int, int] | None = None
        self._take_descriptor()
        self._give_back()
        found = self._identity
        assert found is not None
        self.device: int = found[0]
        self.inode: int = found[1]
        self._size: int = found[2]

    @property
    def path(self) -> Path:
        """Return where the file lies."""
        return self._path

    @property
    def size(self) -> int:
        """Return the size in bytes, as it was when the file was opened first."""
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from byte `offset`."""
        out = bytearray(size)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`."""
        descriptor = self._take_descriptor()
        try:
            while len(out):
                count = os.preadv(descriptor, [out], offset)
                if count == 0:
                    raise CheckpointError(
                        f"ends at byte {offset} while it is read",
                        subject=self.path,
                        hint="something cut it short; average a run that is not being rewritten",
                    )
                offset += count
                out = out[count:]
        except OSError as error:
            raise CheckpointError(f"cannot be read at byte {offset}: {error.strerror}", subject=self.path) from error
        finally:
            self._give_back()

    def check_unchanged(self) -> None:
        """Raise a CheckpointError if what lies at the path is not what was opened."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - one stat call, as in _open
        except OSError as error:
            raise CheckpointError(f"disappeared while it was used: {error.strerror}", subject=self.path) from error
        self._check_identity(found)

    def _check_identity(self, found: os.stat_result) -> None:
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._identity is None:
            self._identity = identity
        if identity != self._identity:
            raise CheckpointError(
                "changed while it was used",
                subject=self.path,
                hint="average a run that is not being rewritten",
            )

    def _take_descriptor(self) -> int:
        """Return a descriptor that stays open until it is given back."""
        with _lock:
            descriptor = _open_files.get(self)
            if descriptor is None:
                descriptor = self._open()
                _open_files[self] = descriptor
            _open_files.move_to_end(self)
            self._users += 1
            if len(_open_files) > _MAX_OPEN:
                _close_idle()
            return descriptor

    def _give_back(self) -> None:
        with _lock:
            self._users -= 1

    def _open(self) -> int:
        descriptor = -1
        try:
            # Before it is opened, too: to open a device can be an action of its own.
            if not stat.S_ISREG(os.stat(self.path).st_mode):  # noqa: PTH116
                raise CheckpointError("is not a regular file", subject=self.path)
            # O_NONBLOCK: should a FIFO take its place now, nobody waits for a writer that never comes.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError("is not a regular file", subject=self.path)
            self._check_identity(found)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            if isinstance(error, OSError):
                raise CheckpointError(f"cannot be opened: {error.strerror}", subject=self.path) from error
            raise
        return descriptor


_lock = threading.Lock()
_open_files: OrderedDict[InputFile, int] = OrderedDict()


def _close_idle() -> None:
    """Close the descriptors that were used longest ago, until few enough are open."""
    idle = [file for file in _open_files if file._users == 0]
    for file in idle[: len(_open_files) - _MAX_OPEN]:
        os.close(_open_files.pop(file))
