"""Bytes that are read by range."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.storage.info import Identity

HINT_REWRITTEN = "average a run that is not being rewritten"
NOT_REGULAR = "is not a regular file"


class ByteSource(Protocol):
    """Bytes that can be read by range, from several threads: a file, or a region of one."""

    @property
    def path(self) -> Path:
        """Return the file's path, for messages."""
        ...

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from byte `offset`."""
        ...

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`."""
        ...


class InputFile(ByteSource, Protocol):
    """A whole file, which must not change while it is used."""

    @property
    def identity(self) -> Identity:
        """Return what tells the file, as it was when it was opened, from every other."""
        ...

    def check_unchanged(self) -> None:
        """Raise a CheckpointError if what lies at the path is not what was opened."""
        ...


class Filled(ABC):
    """A source that only fills memory: its bytes are read into memory of their own."""

    __slots__ = ()

    @abstractmethod
    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from byte `offset`."""
        out = bytearray(size)
        self.read_into(offset, memoryview(out))
        return bytes(out)


@dataclass(frozen=True, slots=True)
class FileRegion:
    """A part of a file, read as if it were a file of its own: one record of a shard."""

    file: ByteSource
    start: int
    size: int

    @property
    def path(self) -> Path:
        """Return the path of the file around it."""
        return self.file.path

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from byte `offset` of the region."""
        self._check(offset, size)
        return self.file.read(self.start + offset, size)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset` of the region."""
        self._check(offset, len(out))
        self.file.read_into(self.start + offset, out)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.size:
            raise CheckpointError(f"a record of {self.size} bytes is read past its end", subject=self.path)


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Bytes in memory, read as if they were a file; `path` is that of the file that they are made of."""

    path: Path
    data: bytes

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from byte `offset`."""
        return self.data[offset : offset + size]

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`."""
        out[:] = self.data[offset : offset + len(out)]
