"""What each library loads from its checkpoints: by torch, safetensors or the library's own classes, never by ours."""

from __future__ import annotations

import io
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

Tensors = Mapping[str, torch.Tensor]


def safetensors_files(folder: Path) -> Tensors:
    """Return the tensors of all files in a folder, those in folders of it with the folder before their names."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        place = path.parent.relative_to(folder).as_posix()
        found.update({name if place == "." else f"{place}/{name}": value for name, value in load_file(path).items()})
    return found


class _Missing(type):
    """A class that is not installed, whose methods a file may name, too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Lenient(pickle.Unpickler):
    """Unpickles what names classes that are not installed, as empty ones."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except ImportError:
            return _Missing(name, (list,), {})


def _load(path: Path) -> Any:
    """Return what torch.save wrote."""
    lenient = types.ModuleType("lenient")
    vars(lenient).update(Unpickler=_Lenient, load=pickle.load)
    return torch.load(path, weights_only=False, pickle_module=lenient)


def torch_file(*keys: str, name: str = "", prefix: str = "") -> Callable[[Path], Tensors]:
    """Return what loads the state dict under some keys of what torch.save wrote: a file, or `name` in a folder.

    Where there is a `prefix`, only names with it are of the model, and it is no part of them.
    """

    def load(path: Path) -> Tensors:
        value = _load(path / name if name else path)
        for key in keys:
            value = value[key]
        return {name.removeprefix(prefix): tensor for name, tensor in value.items() if name.startswith(prefix)}

    return load


def ultralytics(path: Path) -> Tensors:
    """Return the tensors of the module under `ema`, as `state_dict()` names them; its classes are not installed."""
    tensors: dict[str, torch.Tensor] = {}
    todo = [("", _load(path)["ema"])]
    while todo:
        place, module = todo.pop(0)
        own = {**vars(module)["_parameters"], **vars(module)["_buffers"]}
        tensors.update({f"{place}{name}": tensor.detach() for name, tensor in own.items() if tensor is not None})
        todo += [(f"{place}{name}.", inner) for name, inner in vars(module)["_modules"].items()]
    return tensors


def zero_to_fp32(folder: Path) -> Tensors:
    """Return what DeepSpeed's script gave for a checkpoint, and what it leaves out: what stage 1 does not train."""
    data = folder.parents[1]
    given = load_file(data / "expected" / f"{folder.parent.name}-{folder.name.removeprefix('global_step')}.safetensors")
    whole = folder / "mp_rank_00_model_states.pt"
    module = torch.load(whole, weights_only=False)["module"] if whole.exists() else {}
    return {**module, **given}


def gathered(kind: str) -> Callable[[Path], Tensors]:
    """Return a function that gives what torch gathered from all ranks when they saved a checkpoint."""

    def load(folder: Path) -> Tensors:
        made = next(around for around in folder.parents if (around / "expected").is_dir())
        (step,) = re.findall(r"step[-_](\d+)", folder.relative_to(made).as_posix())
        return load_file(made / "expected" / f"{kind}-{step}.safetensors")

    return load


def expected(place: str) -> Callable[[Path], Tensors]:
    """Return what gives the tensors that a library loaded, from the file beside the run that has them.

    `place` is its path from the folder of the library, with the step in the place of {}.
    """

    def load(path: Path) -> Tensors:
        numbers = re.findall(r"\d+", path.name)
        return load_file(path.parents[1] / place.format(numbers[0]))

    return load


def numpy_archive(path: Path) -> Tensors:
    """Return the arrays in an archive of numpy's."""
    with np.load(path) as archive:
        return {name: torch.tensor(archive[name]) for name in archive.files}


def stable_baselines3(path: Path) -> Tensors:
    """Return the policy in an archive of stable-baselines3's."""
    with zipfile.ZipFile(path) as archive, archive.open("policy.pth") as file:
        tensors: Tensors = torch.load(io.BytesIO(file.read()), weights_only=True)
        return tensors


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
