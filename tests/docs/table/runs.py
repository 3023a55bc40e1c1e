"""A run for each row of the table of what is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.docs.table import builders as made
from tests.docs.table.builders import Case, Net, distributed, each, lora, state_dict


def titan(step: int) -> dict[str, Any]:
    """Return what torchtitan saves: the model at the top, the rest beside it, averages too."""
    tensors = state_dict(step)
    state = {f"state.{name}.ema_params": tensor + 9 for name, tensor in tensors.items() if tensor.is_floating_point()}
    optimizer = {f"state.{name}.exp_avg": tensor for name, tensor in tensors.items()}
    return {**tensors, "optimizer": optimizer, "lr_scheduler": {"last_epoch": step}, "ema": state} | {
        "train_state": {"step": step, "ntokens_seen": 100 * step}
    }


def fsdp_dtensor(step: int) -> dict[str, Any]:
    """Return what Megatron's FSDP saves, its model in the wrapper."""
    model = {f"module.{name}": tensor for name, tensor in state_dict(step).items()}
    return {"model": model, "optimizer": {"exp_avg": torch.ones(2)}, "iteration": step, "checkpoint_version": 3.0}


def composer(step: int) -> dict[str, Any]:
    """Return what Composer saves, sharded or not."""
    timestamp = {"Timestamp": {"epoch": 0, "batch": step, "sample": 4 * step, "token": 0, "batch_in_epoch": step}}
    return {"state": {"model": state_dict(step), "timestamp": timestamp, "optimizers": {"Adam": state_dict(9)}}}


def lightning(step: int) -> dict[str, Any]:
    """Return what Lightning saves in one file."""
    return {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": step, "state_dict": state_dict(step)}


def mmengine(step: int) -> dict[str, Any]:
    """Return what MMEngine saves without its EMA."""
    return {"meta": {"epoch": step, "iter": step}, "state_dict": state_dict(step), "message_hub": {}}


def mmcv(step: int) -> dict[str, Any]:
    """Return what mmcv 1.x saves."""
    return {"meta": {"epoch": step, "iter": step, "mmcv_version": "1.7.1"}, "state_dict": state_dict(step)}


def ignite(step: int) -> dict[str, Any]:
    """Return what ignite's ModelCheckpoint saves of a model and its trainer."""
    return {"model": state_dict(step), "trainer": {"epoch_length": 9, "iteration": step, "max_epochs": 3}}


def icefall(step: int) -> dict[str, Any]:
    """Return what icefall saves, its running mean beside the model."""
    return {"model": state_dict(step), "model_avg": state_dict(9), "batch_idx_train": step, "sampler": {}}


READ: dict[str, list[Callable[[Path], Case]]] = {
    "safetensors": [made.safetensors_files],
    "safetensors in shards": [made.hub_cache],
    "safetensors of ranks": [made.rank_shards],
    "torch.save, zip": [
        each("step-{}.pt", lambda step: {"model": state_dict(step), "step": step}),
        each("step-{}.bin", state_dict),
        each("step-{}.ckpt", lambda step: {"net": {"w": state_dict(step)}}, Case("--key", "net.w")),
    ],
    "torch.save, legacy": [each("a{}.pth", lambda step: {"state_dict": state_dict(step), "step": step}, legacy=True)],
    "a whole nn.Module": [
        each("step-{}.pt", Net),
        each("step-{}.pt", lambda step: {"model": torch.nn.DataParallel(Net(step))}, legacy=True),
    ],
    ".bin in shards": [made.bin_shards],
    "Hugging Face Trainer": [made.trainer],
    "Accelerate": [made.accelerate],
    "torch.distributed.checkpoint": [
        distributed("step-{}", lambda step: {"model": state_dict(step), "optim": state_dict(9), "step": step}),
        distributed("s{}", lambda step: {"app": {"model": state_dict(step), "optim": state_dict(9), "step": step}}),
    ],
    "FSDP's files of ranks": [made.files_of_ranks],
    "torch_checkpointing": [made.items_of_ranks],
    "torchtitan": [distributed("step-{}", titan)],
    "Composer": [each("ep0-ba{}-rank0.pt", composer), distributed("ep0-ba{}", composer)],
    "Lightning": [
        each("epoch=0-step={}.ckpt", lightning),
        distributed("epoch=0-step={}.ckpt", lambda step: {"state_dict": state_dict(step)}, made.lightning_meta),
        distributed("last-v{}.ckpt", lambda step: {"model": state_dict(step)}, made.lightning_meta),
    ],
    "DeepSpeed": [made.deepspeed, made.deepspeed_zero],
    "DeepSpeed, universal": [made.deepspeed_universal],
    "OLMo-core, NeMo": [
        distributed(
            "step{}/model_and_optim", lambda s: {"model": state_dict(s), "optim": state_dict(9)}, made.olmo_mark
        ),
        distributed("x-step={}/weights", lambda s: {f"module.{name}": t for name, t in state_dict(s).items()}),
    ],
    "MMEngine": [each("epoch_{}.pth", mmengine)],
    "timm": [made.timm],
    "fairseq": [each("checkpoint{}.pt", made.fairseq)],
    "nanoGPT, litgpt": [
        each("ckpt{}.pt", lambda step: {"model": state_dict(step), "model_args": {}, "iter_num": step}),
        each(
            "step-{:08}/lit_model.pth",
            lambda step: {"model": state_dict(step), "iter_num": 4 * step, "step_count": step},
        ),
    ],
    "OpenNMT-py": [made.opennmt_run],
    "espnet, wenet, icefall": [made.espnet, made.wenet, each("checkpoint-{}.pt", icefall)],
    "Diffusers": [made.diffusers],
    "sentence-transformers": [made.sentence_transformers],
    "mmcv 1.x": [each("epoch_{}.pth", mmcv)],
    "SpeechBrain": [made.speechbrain],
    "pytorch-ignite, MONAI": [
        each("checkpoint_{}.pt", ignite),
        each("net_iteration={}.pt", lambda step: {"net": state_dict(step), "opt": {}}),
    ],
    "LeRobot, openpi": [made.lerobot, made.openpi],
    "nanochat": [made.nanochat],
    "rsl_rl, rl_games (Isaac Lab)": [
        each("model_{}.pt", lambda step: {"model_state_dict": state_dict(step), "iter": step, "infos": None}),
        each(
            "run_{}.pth",
            lambda step: {"model": state_dict(step), "epoch": 7, "frame": step},
            Case("--half-life", "1sp"),
        ),
    ],
    "Megatron-Core": [
        distributed("iter_{:07}", state_dict, made.megatron_common),
        distributed("iter_{:07}", lambda step: {**state_dict(step), "common_state": {"iteration": step}}),
        distributed("iter_{:07}", fsdp_dtensor),
    ],
    "Ray Train, fastai, skorch": [
        each("checkpoint_{:06}/checkpoint.ckpt", lightning),
        each("model_{}.pth", lambda step: {"model": state_dict(step), "opt": {}}, Case("--name-clock", "ba")),
        each("params_{}.pt", state_dict, Case("--name-clock", "ba")),
    ],
    "mlx-lm": [lora(("0000001_adapters", "0000002_adapters", "0000003_adapters"), lambda step: {})],
    "kohya's sd-scripts, musubi-tuner, ai-toolkit": [made.kohya, made.ai_toolkit],
    "PEFT adapters": [made.peft],
    "value heads, projectors": [made.value_head],
    "numpy, MLX": [made.npz("step-{}.npz", np.savez), made.npz("a{}.npz", np.savez_compressed)],
    "stable-baselines3": [made.stable_baselines],
    "NeMo's .nemo": [made.nemo],
    "Paddle": [made.paddle],
    "Flax": [made.flax],
    "Orbax": [made.orbax],
    "files of ranks": [
        made.ranks("step{}-rank{}.pt"),
        made.ranks("step-{}/consolidated.0{}.pth"),
        made.ranks("s-{}/{}.pt"),
    ],
    "OLMo's local sharded checkpoints": [made.flattened],
}
