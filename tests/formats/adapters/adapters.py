"""A small base model and adapters of it, as PEFT writes them, and what they add to it by dense arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q", "embed", "conv"], "rank_pattern": {},
    "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "base_model_name_or_path": "some/base",
    "init_lora_weights": True, "fan_in_fan_out": False, "bias": "none", "lora_bias": False,
}  # fmt: skip
BEGIN = "base_model.model."
SHAPES = {  # of A and B
    "layer.q.lora_{}.weight": ((2, 5), (4, 2)),
    "embed.lora_embedding_{}": ((2, 9), (4, 2)),
    "conv.lora_{}.weight": ((2, 3, 2, 2), (6, 2, 1, 1)),
}
Arrays = dict[str, NDArray[np.float64]]


def base_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return the weights of the base model."""
    draw = torch.Generator().manual_seed(5)
    shapes = {"layer.q.weight": (4, 5), "embed.weight": (9, 4), "conv.weight": (6, 3, 2, 2), "head.weight": (9, 4)}
    tensors = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    return {**tensors, "layer.q.bias": torch.ones(4).to(dtype), "steps": torch.tensor([7])}


def write_base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the base model as a folder."""
    folder.mkdir()
    save_file(base_tensors(dtype), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "small", "dtype": "float32"}')
    (folder / "README.md").write_text("# The base model\n")
    return folder


def adapter_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Return A and B of each pair, and a head that is saved whole."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        BEGIN + name.format(part): torch.randn(shape, generator=draw)
        for name, shapes in SHAPES.items()
        for part, shape in zip("AB", shapes, strict=True)
    }
    return {**tensors, f"{BEGIN}head.weight": torch.randn(9, 4, generator=draw)}


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """Write an adapter's checkpoint of the Trainer's, whose name says the step."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes, indent=2, sort_keys=True))
    step = int(folder.name.rpartition("-")[2])
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 10}))
    return folder


def write_run(folder: Path, **changes: Any) -> list[Path]:
    """Write three checkpoints of one adapter."""
    return [write_adapter(folder / f"checkpoint-{step}", adapter_tensors(step), **changes) for step in (1, 2, 3)]


def dense(folder: Path) -> Arrays:
    """Return what the adapter in a folder adds to each weight of the base model, in float64 and with matrices whole."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    tensors = {name: tensor.double().numpy() for name, tensor in stored.items()}
    added: Arrays = {}
    for name in SHAPES:
        a, b = (tensors[BEGIN + name.format(part)] for part in "AB")
        module = name.partition(".lora_")[0]
        alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
        scale = alpha / (len(a) ** 0.5 if config["use_rslora"] else len(a))
        product = np.einsum("or,ri->oi", b.reshape(len(b), -1), a.reshape(len(a), -1)) * scale
        added[f"{module}.weight"] = product.T if "embed" in module else product.reshape(len(b), *a.shape[1:])
    return added


def mean(arrays: list[Arrays], weights: list[float]) -> Arrays:
    """Return a weighted mean of arrays."""
    return {name: sum(w * each[name] for w, each in zip(weights, arrays, strict=True)) for name in arrays[0]}
