"""Compare a file with what the official reader of safetensors finds in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import CheckpointError, Unreadable
from ema_cli.system.memory import give_back


def official_digest(path: Path, tensors: int) -> bytes:
    """Return a digest of the names, dtypes and shapes that the official reader finds in a local file.

    Args:
        path: the file, which our own reader has read: of any other it could take memory without bounds.
        tensors: how many that found. The official reader's tables take a kibibyte for each, for a while.

    Raises:
        CheckpointError: where it refuses the file; the fact is its reason.
        Unreadable: where the file system does not give the file.
    """
    give_back(tensors)
    with _official(path) as reader:
        slices = ((name, reader.get_slice(name)) for name in sorted(reader.keys()))
        digest = _digest((name, tensor.get_dtype(), tensor.get_shape()) for name, tensor in slices)
    give_back(tensors)
    return digest


def digest_of(specs: Mapping[str, TensorSpec]) -> bytes:
    """Return the same digest of tensors by name."""
    return _digest((name, specs[name].dtype.name, specs[name].shape) for name in sorted(specs))


def different_tensors(path: Path, specs: Mapping[str, TensorSpec]) -> set[str]:
    """Return the names of the tensors that the official reader does not find in a file as `specs` have them.

    Raises:
        CheckpointError, Unreadable: as `official_digest`.
    """
    with _official(path) as reader:
        names: list[str] = reader.keys()
        if len(names) != len(specs) or any(name not in specs for name in names):
            return specs.keys() ^ names
        return {name for name, spec in specs.items() if not _is_same(reader.get_slice(name), spec)}


def _is_same(tensor: Any, spec: TensorSpec) -> bool:
    return tensor.get_dtype() == spec.dtype.name and tuple(tensor.get_shape()) == spec.shape


@contextmanager
def _official(path: Path) -> Iterator[Any]:
    """Open a file with the official reader, and make its errors ours."""
    try:
        with safe_open(path, framework="np") as reader:
            yield reader
    except SafetensorError as error:
        raise CheckpointError(str(error), subject=path) from error
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}", subject=path) from error


def _digest(rows: Iterable[tuple[str, str, Iterable[int]]]) -> bytes:
    digest = blake2b()
    for name, dtype, shape in rows:
        digest.update(json.dumps([name, dtype, [*shape]]).encode() + b"\n")
    return digest.digest()
