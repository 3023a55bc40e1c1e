"""Runs to average by several workers, as data, and what comes out of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

STEPS = (100, 200, 300)


def tensors(step: int, rows: int = 40) -> dict[str, torch.Tensor]:
    """Return floats of several types and shapes, integers, and an empty tensor."""
    random = torch.Generator().manual_seed(step)
    return {
        "embeddings": torch.randn(rows, 17, generator=random),
        "layer.0.weight": torch.randn(rows, rows, generator=random).to(torch.bfloat16),
        "layer.1.weight": torch.randn(rows, rows, generator=random).to(torch.float16),
        "layer.1.bias": torch.randn(rows, generator=random, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor([step] * 3),
        "mask": torch.arange(rows) % 3 == 0,
    }


def one_file(folder: Path) -> Path:
    """Write checkpoints of one safetensors file each."""
    folder.mkdir()
    for step in STEPS:
        save_file(tensors(step), folder / f"step-{step}.safetensors", metadata={"format": "pt"})
    return folder


def torch_files(folder: Path) -> Path:
    """Write what a training loop saves, with tied tensors."""
    folder.mkdir()
    for step in STEPS:
        saved = tensors(step)
        saved["head"] = saved["embeddings"]
        torch.save({"model": saved, "step": step}, folder / f"step-{step}.pt")
    return folder


def shards(folder: Path) -> Path:
    """Write folders of three shards each, as transformers has them."""
    for step in STEPS:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        saved, weight_map = tensors(step), {}
        for number in range(3):
            name = f"model-{number + 1:05}-of-00003.safetensors"
            part = dict(list(saved.items())[number::3])
            save_file(part, checkpoint / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(part, name))
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        (checkpoint / "config.json").write_text('{"model_type": "tiny"}')
        (checkpoint / "trainer_state.json").write_text(json.dumps({"epoch": step / 100, "global_step": step}))
    return folder


RUNS: dict[str, Callable[[Path], Path]] = {"one file": one_file, "torch": torch_files, "transformers": shards}


def files_below(place: Path) -> dict[str, bytes]:
    """Return all files in a folder by name, hidden ones too."""
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
