"""torch's pickles, read by Python's own unpickler without running any code."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import nn

MODULES = (nn.Module, nn.Linear, nn.BatchNorm1d, nn.Sequential)


class CarefulUnpickler(pickle.Unpickler):
    """Calls what the files here are made of, and nothing else."""

    KNOWN = {
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
            "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        )
    } | {
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout"),
        ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
        ("torch.distributed.fsdp._flat_param", "_ShardParamInfo"),
        ("torch", "Size"), ("collections", "OrderedDict"), ("__builtin__", "set"),
        (PosixPath.__module__, "PosixPath"),  # pathlib._local in Python 3.13
    } | {(kind.__module__, kind.__name__) for kind in MODULES}  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class CarefulPickle:
    """Takes the place of the module `pickle`."""

    Unpickler = CarefulUnpickler

    @staticmethod
    def load(file: Any, **keywords: Any) -> Any:
        """Read one pickle."""
        return CarefulUnpickler(file, **keywords).load()


def torch_load(path: Path) -> Any:
    """Return what torch reads: by its own safe unpickler, or else by the full language of pickles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source of a module's class
        try:
            return torch.load(path, weights_only=True)
        except Exception:  # noqa: BLE001 - a library may raise anything for a damaged file
            return torch.load(path, weights_only=False, pickle_module=CarefulPickle)
