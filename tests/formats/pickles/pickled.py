"""Things to pickle, and pickles read back by torch's own rules."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ema_cli.formats.pickles import unpickle as entry


@dataclasses.dataclass
class Memory:
    """Bytes in memory, as a source."""

    data: bytes
    path: Path = Path("memory")

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        """Return a range."""
        return self.data[offset : offset + size]

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill a buffer from a range."""
        out[:] = self.read(offset, len(out))


def unpickle(data: bytes) -> Any:
    """Return what the reader makes of a whole pickle."""
    return entry.unpickle(Memory(data))[0]


class Color(enum.Enum):
    """An enum, as a configuration may hold."""

    RED = 1


@dataclasses.dataclass
class Config:
    """A dataclass, as hyper-parameters often are."""

    width: int
    names: list[str]


def some_function() -> None:
    """Stand for a function that is pickled by its name."""


class Call:
    """Something whose pickle says: call this function with these arguments."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.recipe = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return what a naive reader calls."""
        return self.recipe
