"""Experts of DeepSpeed's: how they are told from other parameters, and who puts them together.

Its automatic experts (AutoEP) are named in the model states, and its converter puts them together. Of the layers that
its users write (`deepspeed.moe`) each expert has a file, which the converter passes over.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any

SAVE_WHOLE = "save the model whole in the training, with torch.save or safetensors"
Shape = tuple[int, ...]
_LAYERS = ("ds_autoep_layers", "autoep_layers")
_OF_ROUTER = ("gate.weight", "gate.bias")
MERGE_EXPERTS = (
    "put it together first; DeepSpeed has no converter for these: torch.load mp_rank_00_model_states.pt, add what each "
    "expert's file holds to its dict 'module', and torch.save that, one file for each checkpoint"
)


def universal_hint(path: Path, folder: Path) -> str:
    """Return the hint for what DeepSpeed puts together in its universal format, which is read.

    `folder` has the files of the checkpoint at `path`.
    """
    name = f"universal/{(folder if path.parent == folder else path).name}"
    command = f"--input_folder {shlex.quote(str(folder))} --output_folder {shlex.quote(name)}"
    return (
        "put each checkpoint together first, in the universal format: python -m deepspeed.checkpoint.ds_to_universal "
        f"{command}"
    )


def has_automatic_experts(root: Mapping[str, Any]) -> bool:
    """Return whether a file of model states is of a model with automatic experts."""
    return any(root.get(key) for key in _LAYERS)


def shape_of_all(record: Mapping[str, Any], shape: Shape, stored: Shape) -> Shape:
    """Return the shape that a parameter in the universal format must have, by that of its table.

    The table has it for a rank's own experts, and the file for those of all ranks, one after another.

    Args:
        record: what the file of the parameter says of it.
        shape: that of the table.
        stored: that of the file.
    """
    is_of_all = record.get("is_expert_param") is True and stored[:1] == (record.get("ep_num_experts"),)
    return (*stored[:1], *shape[1:]) if is_of_all else shape


def names_of_routers(root: Mapping[str, Any], trained: Collection[str]) -> dict[str, str]:
    """Return further names of parameters that train, with the names that are in the tables.

    A layer of automatic experts has its router once more, under the name that it had in the model before. DeepSpeed
    lists no such name as shared.
    """
    layers = next((value for value in map(root.get, _LAYERS) if isinstance(value, list)), [])
    paths = [layer.get("module_path") for layer in layers if isinstance(layer, dict)]
    prefixes = {f"{path}." if path else "" for path in paths if isinstance(path, str)}
    module = root.get("module")
    names = {}
    for name, part in product(module if isinstance(module, dict) and prefixes else (), _OF_ROUTER):
        if isinstance(name, str) and name.endswith(f".{part}") and name not in trained:
            parent, dot, _ = name.removesuffix(f".{part}").rpartition(".")
            router = f"{parent}{dot}router.{part}"
            if parent + dot in prefixes and router in trained:
                names[name] = router
    return names
