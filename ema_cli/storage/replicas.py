"""Bytes that several files hold, and that should be equal: what each of several ranks has whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.storage.source import InputFile
from ema_cli.text import first_few


@dataclass(frozen=True, slots=True)
class Replica:
    """One of them.

    Attributes:
        path: the file.
        read_into: fills memory with the bytes from one of them on.
    """

    path: Path
    read_into: Callable[[int, memoryview], None]


@dataclass(frozen=True, slots=True)
class Replicas:
    """All of them, of a tensor or of a piece of one.

    Attributes:
        tensor: its name.
        nbytes: the size of each.
        each: them, the first of which is read for an average.
        hint: what to do where they differ. None for a buffer, which may: each rank counts for itself.
    """

    tensor: str
    nbytes: int
    each: Sequence[Replica]
    hint: str | None


def replica_in(file: InputFile, first: int) -> Replica:
    """Return what begins at byte `first` of a file."""
    return Replica(file.path, partial(_read_from, file, first))


def _read_from(file: InputFile, first: int, start: int, out: memoryview) -> None:
    """Fill `out` from byte `start` of what begins at byte `first`."""
    file.read_into(first + start, out)


BUFFERS_DIFFER = "buffers that differ between ranks are those of the first: "


def differing_buffers(names: Sequence[str]) -> str:
    """Return what is said of buffers of which ranks have different values."""
    return f"{BUFFERS_DIFFER}{first_few(names)}"


def no_replicas() -> tuple[Replicas, ...]:
    """Return none: what most checkpoints have."""
    return ()


def differs(tensor: str, first: Path, other: Path, hint: str) -> CheckpointError:
    """Return the error for a tensor of which a file has other bytes than the first."""
    return CheckpointError(
        f"'{tensor}' differs from {first.name}, and both ranks have the whole of that", subject=other, hint=hint
    )
