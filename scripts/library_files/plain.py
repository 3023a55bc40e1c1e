"""Libraries that are asked to save a dict of tensors: torch's own writers, MLX, OLMo-core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

from library_files.folders import fresh
from library_files.processes import launch


def torch(folder: Path) -> Path:
    """Save with torch's HuggingFaceStorageWriter: as the first rank does for all, and each rank its own files."""
    import torch.distributed.checkpoint as dcp
    from torch import arange, bfloat16, full, manual_seed, ones

    made = fresh(folder, "torch", "torch-hf-writer")
    manual_seed(0)
    for step in (10, 20, 30):
        tensors = {
            "model.layers.0.w": full((4, 3), float(step)) + arange(3),
            "lm_head.weight": full((2, 3), float(step)).to(bfloat16),
            "norm": ones(2) * step,
        }
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(made / "default" / f"step-{step}")))
        places = {"model.layers.0.w": 1, "norm": 1, "lm_head.weight": 2}
        own = str(made / "distributed" / f"step-{step}")
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(own, places, save_distributed=True))
    launch("library_files.pieces", 2, str(made))
    return made


def mlx(folder: Path) -> Path:
    """Save as mlx-lm does while it trains an adapter, and once at the end."""
    import mlx.core as mx

    made = fresh(folder, "mlx")
    for step in (100, 200, 300):
        a = mx.arange(6).reshape(3, 2).astype(mx.float32) * step
        tensors = {"layers.0.q_proj.lora_a": a, "layers.0.q_proj.lora_b": mx.full((2, 2), step / 3)}
        mx.save_safetensors(str(made / f"{step:07d}_adapters.safetensors"), tensors)
        mx.save_safetensors(str(made / "adapters.safetensors"), tensors)
    return made


def olmo_core(folder: Path) -> Path:
    """Save with OLMo-core's Checkpointer, with the least that it asks of a module that trains."""
    from olmo_core.train.checkpoint import Checkpointer
    from torch import full

    made = fresh(folder, "ai2-olmo-core", "olmo-core")
    for step in (1000, 2000, 3000):
        tensors = {"blocks.0.attention.w_q.weight": full((2, 2), float(step))}
        state = {"model": tensors, "optim": {"state.blocks.0.attention.w_q.weight.exp_avg": full((2, 2), 9.0)}}
        module = SimpleNamespace(state_dict_to_save=lambda state=state: state)
        train = {"global_step": step, "epoch": 1, "global_train_tokens_seen": 10 * step, "max_steps": 5000}
        Checkpointer(work_dir=made / "work", save_overwrite=True).save(str(made / f"step{step}"), module, train)
    return made


WRITERS: Mapping[str, Callable[[Path], Path]] = {"torch": torch, "mlx": mlx, "olmo-core": olmo_core}
