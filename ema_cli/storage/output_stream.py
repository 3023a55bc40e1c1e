"""A file that is written by range, and summed up while it is written."""

from __future__ import annotations

import errno
import os
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Protocol

from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, option
from ema_cli.storage.checksums import Crc32, RunningChecksum

_UNSYNCED_BYTES = 16 << 20  # so many at once: fewer cost more calls, and more are left for the end
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)
# Of one call: for more, the system looks for larger pages, and moves others away to get them where memory is full.
_WRITE_BYTES = 1 << 17
WRITE_ELSEWHERE = f"write elsewhere with {option('o')}"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written: its size in bytes, and its sha256 as hexadecimal text, empty where it was not summed."""

    size: int
    sha256: str


class NewFile(Protocol):
    """A new file that is written by range, from several threads: on a disk, or on its way into a store.

    All methods raise an OutputError where that is refused.
    """

    def write(self, offset: int, data: bytes | memoryview, *, noted: bool = True, ahead: bool = False) -> None:
        """Take `data` for byte `offset`.

        Args:
            offset: the byte of the file at which they begin.
            data: the bytes, which may change afterwards.
            noted: whether to sum them up at once; of many small pieces that costs more than to read them in the end.
            ahead: whether they may belong far behind what comes next.
        """

    def sync(self) -> None:
        """Wait until all of it is where it has to be: on the disk, or sent."""

    def sha256(self) -> str:
        """Return the sha256 of the whole file as hexadecimal text, empty where it is not summed."""
        ...

    def give_up(self) -> None:
        """Let threads go that wait: nobody needs the file any more."""

    def close(self) -> None:
        """Close what is open for it."""


class OutputStream:
    """A new file on a disk, a `NewFile`.

    Args:
        path: where; nothing may be there yet.
        summed: whether to keep its sha256 up to date while it is written. Then no byte may be written twice.
        synced: whether the disk has to have it in the end; of one that will be removed soon it need not.
        shared: whether others write into it, too: then it may be there.
        stretch: the bytes of a shared file, from and to, that are written here; of them `crc32` is kept, not sha256.

    Raises:
        OutputError: where the file system refuses; all methods raise it.
    """

    def __init__(
        self,
        path: Path,
        *,
        summed: bool = True,
        synced: bool = True,
        shared: bool = False,
        stretch: tuple[int, int] | None = None,
    ) -> None:
        self.path = path
        self._begin, self._end = stretch if stretch is not None else (0, -1)  # -1: where the file ends
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if shared else os.O_EXCL)
        with output_errors(path):
            self._descriptor = os.open(path, flags, 0o666)  # the umask takes its bits off, as for any file
        checksum = None if stretch is None else Crc32()
        read_own = partial(self._read_from, self._begin)
        self._sum = RunningChecksum(read_own, checksum) if summed else None
        self._synced = synced
        self._unsynced = 0  # bytes that the disk has not been asked for
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # one writes at a time: in the system, others would spin until it is done

    def extend(self, size: int) -> None:
        """Make the file that long, if it is shorter: what nobody wrote yet reads as zeros."""
        with output_errors(self.path):
            if os.fstat(self._descriptor).st_size < size:
                os.ftruncate(self._descriptor, size)

    def write(self, offset: int, data: bytes | memoryview, *, noted: bool = True, ahead: bool = False) -> None:
        """Write all of `data` at byte `offset`; what is not `noted`, as many small pieces, is summed up at the end.

        Whether it is `ahead` of the rest makes no difference to a file.
        """
        with output_errors(self.path):
            self._put(offset, memoryview(data))
        if self._sum is not None and noted:
            self._sum.add(offset - self._begin, memoryview(data))

    def _put(self, offset: int, data: memoryview) -> None:
        """Write bytes to the file, without summing them up."""
        rest, position = data, offset
        with self._writing:
            while len(rest):
                count = os.pwrite(self._descriptor, rest[: _WRITE_BYTES - position % _WRITE_BYTES], position)
                position += count
                rest = rest[count:]
        with self._lock:
            self._unsynced += len(data)
            if is_much := self._unsynced >= _UNSYNCED_BYTES:
                self._unsynced = 0
        if is_much and self._synced:
            _start_writing(self._descriptor)

    def note(self, begin: int, end: int) -> None:
        """Sum up the bytes from `begin` to `end`, which others have written, as soon as all before them is there."""
        if self._sum is not None:
            with output_errors(self.path):
                self._sum.add_written(begin - self._begin, end - self._begin)

    def read(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from byte `offset`: as many as the system gives in one call."""
        with output_errors(self.path):
            return os.pread(self._descriptor, size, offset)

    def _read_from(self, begin: int, offset: int, size: int) -> bytes:
        return self.read(begin + offset, size)

    def sha256(self) -> str:
        """Return the sha256 of the whole file as hexadecimal text, empty where it is not summed."""
        if self._sum is None:
            return ""
        with output_errors(self.path):
            end = os.fstat(self._descriptor).st_size if self._end < 0 else self._end
            return self._sum.hexdigest(end - self._begin)

    def crc32(self) -> str:
        """Return the CRC-32 of the stretch as hexadecimal text, empty where it is not summed."""
        return self.sha256()

    def give_up(self) -> None:
        """End a `sha256` that another thread waits for: nobody needs it any more."""
        if self._sum is not None:
            self._sum.give_up()

    def sync(self) -> None:
        """Wait until the disk has all of it, if it has to. Some disks report only now that they are full."""
        if self._synced:
            with output_errors(self.path):
                os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the descriptor. A thread that was not waited for finds none: its number may soon be another file's."""
        with output_errors(self.path), self._writing:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _start_writing(descriptor: int) -> None:
    """Let the disk begin with what was written, where the system can: the fsync at the end has less to wait for then.

    What fails here fails again in the fsync, which says so.
    """
    call = _sync_file_range()
    if call is not None:
        call(descriptor, 0, 0, _START_WRITING)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], object] | None:
    """Return that call of the system, None where it has none."""
    import ctypes  # only for files that are long enough

    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


@contextmanager
def new_file(path: Path, *, summed: bool = True, synced: bool = True) -> Iterator[OutputStream]:
    """Yield a new file to write into: on the disk, if `synced`, when the block ends well, and closed in any case.

    Raises:
        OutputError: where it cannot be written.
    """
    stream = OutputStream(path, summed=summed, synced=synced)
    try:
        yield stream
        stream.sync()
    finally:
        stream.close()


def write_file(
    path: Path, blocks: Iterable[bytes | memoryview], *, summed: bool = True, synced: bool = True
) -> WrittenFile:
    """Write a file block by block, small ones together.

    Raises:
        OutputError: where it cannot be written.
    """
    with new_file(path, summed=summed, synced=synced) as stream:
        position = 0
        for block in _together(blocks):
            stream.write(position, block)
            position += len(block)
        return WrittenFile(position, stream.sha256())


def _together(blocks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield small blocks as larger ones: a text comes word by word, and each would be a call to the system."""
    small = bytearray()
    for block in blocks:
        if len(small) + len(block) < _WRITE_BYTES:
            small += block
            continue
        yield bytes(small)
        small.clear()
        yield block
    yield bytes(small)


def sync_file(path: Path) -> None:
    """Wait until the disk has all of a file that somebody else wrote."""
    with output_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
            errno.ENOSPC: f"make room, or {WRITE_ELSEWHERE}",
            errno.EDQUOT: f"make room, or {WRITE_ELSEWHERE}",
            errno.ENOENT: f"make the folder first: mkdir -p {shlex.quote(str(path.parent))}",
        }.get(error.errno or 0)
        raise OutputError(f"cannot be written: {error.strerror or error}", subject=path, hint=hint) from error
