"""The runs in tests/data that libraries wrote: what is averaged, and what each must give."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.formats.pieces.make import load_pieces
from tests.libraries import loading
from tests.libraries.loading import safetensors_files, torch_file

# Also for files that were written just now, by `make test-libraries`.
DATA = Path(os.environ.get("LIBRARY_FILES", Path(__file__).parents[1] / "data")).absolute()


@dataclass(frozen=True, slots=True)
class Written:
    """A run that a library wrote.

    Attributes:
        folder: the folder of the run, below tests/data.
        checkpoints: the clock of each checkpoint in the unit, by its path in the run, oldest first.
        load: gives the tensors that the library loads from a checkpoint.
        unit: of the clocks.
        arguments: what the command needs besides the folder and the law.
        side_files: of the newest checkpoint, which an output that is a folder has, too.
    """

    folder: str
    checkpoints: Mapping[str, int]
    load: Callable[[Path], Mapping[str, torch.Tensor]]
    unit: str = "ba"
    arguments: tuple[str, ...] = ()
    side_files: tuple[str, ...] = ()


def numbered(name: str, *clocks: int, step: int = 1) -> dict[str, int]:
    """Return the clocks by the names that have them in the place of {}."""
    return {name.format(clock): clock * step for clock in clocks}


# By the first column of the table in docs/reference/what-your-trainer-writes.md.
LIBRARIES: Mapping[str, list[Written]] = {
    "accelerate 1.15.0": [
        Written(
            "accelerate-1.15.0/checkpoints",
            {f"checkpoint_{number}": 100 * (number + 1) for number in range(3)},
            safetensors_files,
            arguments=("--spacing", "100ba"),
        )
    ],
    "deepspeed 0.19.8": [
        Written(
            f"deepspeed-0.19.8/{kind}",
            numbered("global_step{}", 2, 4),
            loading.zero_to_fp32,
            arguments=("--masters",),
        )
        for kind in ("zero1-bfloat16-2", "zero2-bfloat16-3", "zero3-bfloat16-2", "zero3-float32-3")
    ],
    "diffusers 0.42.1": [
        Written(
            "diffusers-0.42.1",
            numbered("step-{}", 100, 200, 300),
            safetensors_files,
            side_files=("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vqvae/config.json"),
        )
    ],
    "ema-pytorch 0.8.3": [Written("ema-pytorch-0.8.3/beside", numbered("step-{}.pt", 2, 3, 4), torch_file("model"))],
    "fastai 2.8.12": [
        Written(
            "fastai-2.8.12",
            {f"model_{number}.pth": number + 1 for number in range(3)},
            torch_file("model"),
            unit="ep",
            arguments=("--name-clock", "ep"),
        )
    ],
    "flax 0.12.8": [
        Written(
            f"flax-0.12.8/{kind}", numbered("state_{}.msgpack", 10, 20, 30), loading.expected("expected/{}.safetensors")
        )
        for kind in ("whole", "chunks")
    ],
    "ignite 0.5.5": [
        Written(
            "ignite-0.5.5/model", numbered("model_{}.pt", 5, 10, 15), torch_file(), arguments=("--name-clock", "ba")
        ),
        Written(
            "ignite-0.5.5/iterations",
            numbered("checkpoint_{}.pt", 5, 10, 15),
            torch_file("model"),
        ),
    ],
    "lerobot 0.4.4": [
        Written(
            "lerobot-0.4.4",
            {f"{step:06}/pretrained_model": step for step in (10, 20, 30)},
            lambda folder: load_file(folder / "model.safetensors"),
            side_files=(
                "config.json",
                "policy_preprocessor.json",
                "policy_preprocessor_step_3_normalizer_processor.safetensors",
                "policy_postprocessor.json",
                "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
            ),
        )
    ],
    "lightning 2.6.6": [
        Written(
            "lightning-2.6.6/raw",
            {f"epoch={number}-step={5 * number + 5}.ckpt": number + 1 for number in range(3)},
            torch_file("state_dict"),
            unit="ep",
        ),
        Written(
            "lightning-2.6.6/averages",
            {f"epoch={number}-step={5 * number + 5}.ckpt": 5 * number + 5 for number in range(3)},
            torch_file("current_model_state"),
            arguments=("--weights", "raw"),
        ),
    ],
    "mace 0.3.16": [
        Written(
            "mace-0.3.16",
            {f"small_run-1_epoch-{number}.pt": number + 1 for number in range(3)},
            torch_file("model"),
            unit="ep",
            arguments=("--exclude", "*_swa.pt"),
        )
    ],
    "megatron-fsdp 0.6.1": [
        Written("megatron-fsdp-0.6.1/run", numbered("iter_{:07}", 10, 20), loading.expected("expected/{}.safetensors"))
    ],
    "mlx 0.32.4": [Written("mlx-0.32.4", numbered("{:07}_adapters.safetensors", 100, 200, 300), load_file)],
    "mmengine 0.10.7": [
        Written("mmengine-0.10.7/epochs", numbered("epoch_{}.pth", 1, 2, 3), torch_file("state_dict"), unit="ep"),
        Written("mmengine-0.10.7/iterations", numbered("iter_{}.pth", 5, 10, 15), torch_file("state_dict")),
        Written(
            "mmengine-0.10.7/averages",
            numbered("epoch_{}.pth", 1, 2, 3),
            torch_file("ema_state_dict", prefix="module."),
            unit="ep",
            arguments=("--weights", "raw"),
        ),
    ],
    "monai 1.6.1": [
        Written(
            "monai-1.6.1",
            numbered("checkpoint_epoch={}.pt", 1, 2, 3),
            torch_file("net"),
            unit="ep",
            arguments=("--exclude", "checkpoint_final_iteration=15.pt"),
        )
    ],
    "nemo 3.0.0": [
        Written("nemo-3.0.0/run", numbered("step-{}.nemo", 10, 20, 30), loading.expected("expected/{}.safetensors"))
    ],
    "numpy 2.4.6": [
        Written(f"numpy-2.4.6/{kind}", numbered("step-{}.npz", 10, 20, 30), loading.numpy_archive)
        for kind in ("stored", "compressed")
    ],
    "OLMo 0.6.0": [Written("olmo-0.6.0/run", numbered("step{}", 10, 20), loading.expected("expected/{}.safetensors"))],
    "OLMo-core 3.0.0": [Written("olmo-core-3.0.0", numbered("step{}", 1000, 2000, 3000), loading.olmo_core)],
    "orbax 0.12.8": [
        Written("orbax-0.12.8/manager", numbered("{}", 10, 20, 30), loading.expected("expected/{}.safetensors")),
        Written("orbax-0.12.8/folders", numbered("step_{}", 10, 20, 30), loading.expected("expected/{}.safetensors")),
    ],
    "paddle 3.3.1": [
        Written(
            f"paddle-3.3.1/{kind}",
            numbered("step-{}.pdparams", 10, 20, 30),
            loading.expected(f"expected/{kind}-{{}}.safetensors"),
        )
        for kind in ("plain", "nested")
    ],
    "peft 0.21.2": [
        Written(
            "peft-0.21.2",
            numbered("checkpoint-{}", 1, 2, 3),
            safetensors_files,
            side_files=("adapter_config.json", "second/adapter_config.json"),
        )
    ],
    "ray 2.60.0": [
        Written(
            "ray-2.60.0",
            {
                f"{path.name}/model.pt": epoch
                for epoch, path in enumerate(sorted(DATA.glob("ray-2.60.0/checkpoint_*")), 1)
            },
            torch_file("model"),
            unit="ep",
        )
    ],
    "rl_games 1.6.5": [
        Written(
            "rl-games-1.6.5",
            {path.name: int(path.name.split("_")[3]) for path in sorted(DATA.glob("rl-games-1.6.5/*_rew_-*.pth"))},
            torch_file("model", prefix="_orig_mod."),
            unit="ep",
            arguments=("--exclude", "*_rew__*"),
        )
    ],
    "schedulefree 1.4.1": [
        Written("schedulefree-1.4.1/train", numbered("step-{}.pt", 1, 2, 3), torch_file("model")),
        Written(
            "schedulefree-1.4.1/eval",
            numbered("step-{}.pt", 1, 2, 3),
            torch_file("model"),
            arguments=("--weights", "ema"),
        ),
    ],
    "sentence-transformers 6.2.0": [
        Written(
            "sentence-transformers-6.2.0/dense",
            numbered("checkpoint-{}", 1, 2, 3),
            safetensors_files,
            side_files=("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "tokenizer.json"),
        ),
        Written(
            "sentence-transformers-6.2.0/router",
            numbered("checkpoint-{}", 1, 2, 3),
            safetensors_files,
            side_files=("modules.json", "router_config.json", "query_1_Pooling/config.json"),
        ),
    ],
    "skorch 1.4.0": [
        Written(
            "skorch-1.4.0",
            numbered("params_{}.pt", 1, 2, 3),
            torch_file(),
            unit="ep",
            arguments=("--name-clock", "ep", "--exclude", "train_end_params.pt"),
        )
    ],
    "speechbrain 1.1.2": [
        Written(
            "speechbrain-1.1.2",
            {path.name: 5 * epoch for epoch, path in enumerate(sorted(DATA.glob("speechbrain-1.1.2/CKPT+*")), 1)},
            torch_file(name="model.ckpt"),
        )
    ],
    "stable-baselines3 2.9.2": [
        Written(
            "stable-baselines3-2.9.2",
            numbered("rl_model_{}_steps.zip", 64, 128, 192),
            loading.stable_baselines3,
            unit="sp",
        )
    ],
    "torch 2.13.0": [
        Written("torch-hf-writer-2.13.0/default", numbered("step-{}", 10, 20, 30), safetensors_files),
        Written("torch-hf-writer-2.13.0/distributed", numbered("step-{}", 10, 20, 30), safetensors_files),
        Written("torch-hf-writer-2.13.0/pieces", numbered("step-{}", 10, 20, 30), load_pieces),
        Written(
            "torch-hf-writer-2.13.0/together",
            numbered("step-{}", 10, 20, 30),
            lambda folder: load_pieces(folder / "sharded"),
        ),
    ],
    "torch 2.13.0, FSDP": [
        Written(
            f"torch-fsdp-2.13.0/{kind}",
            numbered("global_step_{}/actor", 10, 20),
            loading.gathered(kind),
            side_files=("config.json",),
        )
        for kind in ("fsdp1", "fsdp2", "fsdp2-tp", "hsdp")
    ],
    "torch-ema 0.3": [Written("torch-ema-0.3", numbered("step-{}.pt", 1, 2, 3), torch_file("model"))],
    "torch_checkpointing 0.1.1": [
        Written("torch_checkpointing-0.1.1/steps", numbered("step-{}", 10, 20), loading.gathered("items"))
    ],
    "ultralytics 8.4.190": [
        Written(
            "ultralytics-8.4.190",
            {f"epoch{number}.pt": number + 1 for number in range(3)},
            loading.ultralytics,
            unit="ep",
            arguments=("--weights", "ema"),
        )
    ],
}
RUNS = {run.folder: run for runs in LIBRARIES.values() for run in runs}
