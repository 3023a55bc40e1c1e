"""What the writers of all containers have in common: a file whose every byte has its place before a tensor is read.

The steps: lay the file out (`lay_out_file`, `lay_out_torch_file`), write `header`, write the tensors by range, in any
order and from several threads, and last call `finish`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.storage.around import Around


@dataclass(frozen=True, slots=True)
class Table:
    """The tensors of a file. Files with equal tensors, as of several averages, share one table.

    Attributes:
        text: the part of the header that describes the tensors.
        begins: where each tensor begins, in bytes after the header, in the order of the file.
        specs: dtype and shape of each tensor, in the order of the file.
        nbytes: the size of all tensors, with the gaps between them.
    """

    text: bytes
    begins: Mapping[str, int]
    specs: Mapping[str, TensorSpec]
    nbytes: int


def whole_name(file: str, tensor: str) -> str:
    """Return the name in the whole output of a tensor that a file holds: the file's folder stands before it."""
    folder, slash, _ = file.rpartition("/")
    return f"{folder}{slash}{tensor}" if slash else tensor


class Stream(Protocol):
    """The file on its way into storage: written by range, and read again."""

    path: Path

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at byte `offset`."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from byte `offset`, or fewer where the file ends or the storage gives fewer at once."""
        ...


class OutputFile(Protocol):
    """One file that will be written. It knows its bytes, except those of the tensors and what follows from these."""

    @property
    def name(self) -> str:
        """Return the name of the file."""
        ...

    @property
    def table(self) -> Table:
        """Return the tensors and their places."""
        ...

    @property
    def header(self) -> bytes:
        """Return the bytes before the tensors."""
        ...

    @property
    def header_size(self) -> int:
        """Return the size of the header in bytes."""
        ...

    @property
    def size(self) -> int:
        """Return the size of the whole file in bytes."""
        ...

    def finish(self, stream: Stream) -> None:
        """Write the bytes that depend on the tensors, such as checksums, once header and tensors are written."""
        ...


class WithoutHeader:
    """A file in which all that stands around the tensors is written at the end."""

    __slots__ = ()

    @property
    def header(self) -> bytes:
        """Return nothing."""
        return b""

    @property
    def header_size(self) -> int:
        """Return 0: places are counted from the beginning of the file."""
        return 0


@runtime_checkable
class FramedFile(OutputFile, Around, Protocol):
    """A file in which something stands around the tensors that follows from them, and can be made in order."""
