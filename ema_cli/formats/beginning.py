"""The first bytes of a file, by which its format is recognised."""

from __future__ import annotations

from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.storage.location import location

_DESCRIBED = 1 << 16  # bytes at the beginning, in which a pickle names what the first tensors are
_SHARES = (b"DTensor", b"ShardedTensor")
_FLAT = b"flat_param.data"  # what OLMo calls what FSDP flattened


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first `count` bytes of a regular file, or all of a shorter one; nothing for anything else."""
    try:
        file = location(path).open()
        return file.read(0, min(count, file.size))
    except CheckpointError:
        return b""  # whoever opens it says why


def names_shares(path: Path) -> bool:
    """Return whether a file of torch's names, near its beginning, a class of tensors that ranks share."""
    beginning = first_bytes(path, _DESCRIBED)
    return any(name in beginning for name in _SHARES)


def names_flat(path: Path) -> bool:
    """Return whether a file of torch's has, near its beginning, what FSDP flattened, with words of what it is."""
    return _FLAT in first_bytes(path, _DESCRIBED)
