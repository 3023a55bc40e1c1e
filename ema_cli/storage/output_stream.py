"""One output file: written by range, summed up as it is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ema_cli.errors import OutputError, option
from ema_cli.storage.checksums import RunningSum


class OutputStream:
    """A new file that is written by range, from several threads; `summed` while it is written, for its sha256."""

    def __init__(self, path: Path, *, summed: bool = True) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with output_errors(path):
            self._descriptor = os.open(path, flags, 0o666)  # less the umask, as any file
        self._sum = RunningSum(self.read)
        self._summed = summed

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at byte `offset`. Where it is summed, no byte is written twice."""
        rest, position = memoryview(data), offset
        with output_errors(self.path):
            while len(rest):
                count = os.pwrite(self._descriptor, rest, position)
                position += count
                rest = rest[count:]
        if self._summed:
            self._sum.wrote(offset, memoryview(data))

    def read(self, offset: int, size: int) -> bytes:
        """Return what was written at byte `offset`: `size` bytes, or as many as come at once."""
        with output_errors(self.path):
            return os.pread(self._descriptor, size, offset)

    def sha256(self) -> str:
        """Return the sum of all that was written, as hexadecimal text."""
        with output_errors(self.path):
            return self._sum.whole(os.fstat(self._descriptor).st_size)

    def give_up(self) -> None:
        """Let a thread that waits for the sum end."""
        self._sum.give_up()

    def sync(self) -> None:
        """Wait until the disk has it: some disks say only now that they are full."""
        with output_errors(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the descriptor."""
        with output_errors(self.path):
            os.close(self._descriptor)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise OutputError(
                "exists already", subject=path, hint=f"replace it with {option('force', True)}"
            ) from error
        hint = {
            errno.ENOSPC: "make room, or write elsewhere with -o",
            errno.EDQUOT: "make room, or write elsewhere with -o",
            errno.ENOENT: f"make the folder first: mkdir -p {path.parent}",
        }.get(error.errno or 0)
        raise OutputError(f"cannot be written: {error.strerror or error}", subject=path, hint=hint) from error
