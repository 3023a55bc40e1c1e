"""Bytes that several files hold, and that should be equal: what each of several ranks has whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError


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


def no_replicas() -> tuple[Replicas, ...]:
    """Return none: what most checkpoints have."""
    return ()


def differs(tensor: str, first: Path, other: Path, hint: str) -> CheckpointError:
    """Return the error for a tensor of which a file has other bytes than the first."""
    return CheckpointError(
        f"'{tensor}' differs from {first.name}, and both ranks have the whole of that", subject=other, hint=hint
    )
