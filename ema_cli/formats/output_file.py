"""What every file that is written has: its tensors, its size, its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ema_cli.checkpoint import TensorSpec


@dataclass(frozen=True, slots=True)
class Table:
    """The tensors of a file: their part of its header, and for each the byte after the header where it begins."""

    text: bytes
    begins: Mapping[str, int]
    specs: Mapping[str, TensorSpec]
    nbytes: int


class Stream(Protocol):
    """A file that is written, and read again, by range."""

    path: Path

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at byte `offset`."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return what is at byte `offset`: `size` bytes, or as many as come at once."""
        ...


class OutputFile(Protocol):
    """One file to write: its header, the tensors by range in any order, and last what `finish` writes."""

    @property
    def name(self) -> str:
        """Return the name of the file."""
        ...

    @property
    def table(self) -> Table:
        """Return the tensors, and where they begin."""
        ...

    @property
    def header(self) -> bytes:
        """Return the bytes before the tensors."""
        ...

    @property
    def header_size(self) -> int:
        """Return the size of the header."""
        ...

    @property
    def size(self) -> int:
        """Return the size of the file."""
        ...

    def finish(self, stream: Stream) -> None:
        """Write into the file, of which header and tensors are written, what only now is known."""
        ...
