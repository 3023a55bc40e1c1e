"""What each library loads from its checkpoints: by torch, safetensors or the library's own code, never by ours."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

Tensors = Mapping[str, torch.Tensor]


def safetensors_files(folder: Path) -> Tensors:
    """Return the tensors of all files in a folder, each under its name there."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def olmo_core(folder: Path) -> Tensors:
    """Return the model that torch loads where OLMo-core's own class of `.metadata` is there."""
    module = types.ModuleType("olmo_core.distributed.checkpoint.filesystem")
    vars(module)["_StorageInfo"] = filesystem._StorageInfo
    state: dict[str, dict[str, torch.Tensor]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("olmo_core", "olmo_core.distributed", "olmo_core.distributed.checkpoint"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        reader = filesystem.FileSystemReader(folder / "model_and_optim")
        _load_state_dict(state, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return state["model"]
