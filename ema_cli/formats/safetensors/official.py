"""Compare a file with what the official reader of safetensors finds in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import CheckpointError, Unreadable
from ema_cli.storage.names import StorePath
from ema_cli.system.memory import give_back


def different_tensors(path: Path, specs: Mapping[str, TensorSpec]) -> set[str]:
    """Return the names of the tensors that the official reader does not find in a file as `specs` have them.

    It opens local files only: of one in a store there is nothing to compare.

    Raises:
        CheckpointError: where it refuses the file; the fact is its reason.
        Unreadable: where the file system does not give the file.
    """
    different: set[str] = set()
    if isinstance(path, StorePath):
        return different
    give_back(len(specs))  # its tables take three times as much for a while
    try:
        with safe_open(path, framework="np") as reader:
            names: list[str] = reader.keys()
            if len(names) != len(specs) or any(name not in specs for name in names):
                return specs.keys() ^ names
            for name, spec in specs.items():
                tensor = reader.get_slice(name)
                if tensor.get_dtype() != spec.dtype.name or tuple(tensor.get_shape()) != spec.shape:
                    different.add(name)
    except SafetensorError as error:
        raise CheckpointError(str(error), subject=path) from error
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}", subject=path) from error
    give_back(len(specs))
    return different
