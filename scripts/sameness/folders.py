"""Folders of Hugging Face's libraries: Accelerate, Diffusers, PEFT, sentence-transformers, the hub's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .containers import write_shards
from .runs import CONFIG, hf_checkpoint
from .tensors import Tensors, model, save, save_tensors, save_text
from .trainers import STEPS, averages


def accelerate(run: Path) -> None:
    """Write what Accelerate's save_state leaves: a counter in the name, and no clock."""
    for step in STEPS:
        folder = run / f"checkpoint_{step - 1}"
        save_tensors(folder / "model.safetensors", model(step), format="pt")
        save(folder / "optimizer.bin", {"never": "opened"})
        save_text(folder / "random_states_0.pkl", "never opened")


def accelerate_two(run: Path) -> None:
    """Write the same of two models."""
    accelerate(run)
    for step in STEPS:
        save_tensors(run / f"checkpoint_{step - 1}" / "model_1.safetensors", model(20 + step), format="pt")


def hub_cache(run: Path) -> None:
    """Write shards as the hub's cache keeps them: links to files elsewhere."""
    for step in STEPS:
        blobs = run.parent / "hub-cache-blobs" / str(step)
        write_shards(blobs, model(step), "model", "safetensors", 2)
        save_text(blobs / "config.json", CONFIG)
        (run / f"step-{step}").mkdir(parents=True)
        for path in sorted(blobs.iterdir()):
            (run / f"step-{step}" / path.name).symlink_to(Path("../../hub-cache-blobs") / str(step) / path.name)


def diffusers(run: Path) -> None:
    """Write training checkpoints of Diffusers: two models, and averages of one."""
    for step in STEPS:
        for component, tensors in (("unet", model(step)), ("unet_ema", averages(step)), ("text_encoder", model(8))):
            base = "model" if component == "text_encoder" else "diffusion_pytorch_model"
            save_tensors(run / f"checkpoint-{step}" / component / f"{base}.safetensors", tensors)
            config = {"_class_name": "Tiny", **({"optimization_step": step} if component == "unet_ema" else {})}
            save_text(run / f"checkpoint-{step}" / component / "config.json", config)


def diffusers_averages(run: Path) -> None:
    """Write nothing but the averages."""
    for step in STEPS:
        folder = run / f"checkpoint-{step}" / "unet_ema"
        save_tensors(folder / "diffusion_pytorch_model.safetensors", averages(step))
        save_text(folder / "config.json", {"optimization_step": step})


def _lora(step: int) -> Tensors:
    random = torch.Generator().manual_seed(step)
    names = ("q.lora_A.weight", "q.lora_B.weight", "v.lora_A.weight", "v.lora_B.weight")
    return {f"base_model.model.{name}": torch.randn(2, 2, generator=random) for name in names}


def _adapters(change: Callable[[int], dict[str, object]]) -> Callable[[Path], None]:
    """Return a maker of adapters as PEFT and the Trainer write them; `change` changes the configuration of a step."""

    def make(run: Path) -> None:
        for step in STEPS:
            folder = run / f"checkpoint-{step}"
            save_tensors(folder / "adapter_model.safetensors", _lora(step))
            config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "some/base"}
            save_text(folder / "adapter_config.json", {**config, **change(step)})
            save_text(folder / "trainer_state.json", {"global_step": step})

    return make


def diffusers_lora(run: Path) -> None:
    """Write LoRAs of Diffusers', with rank and alpha in the header alone."""
    for step in STEPS:
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in _lora(step).items()}
        path = run / f"checkpoint-{step}" / "pytorch_lora_weights.safetensors"
        save_tensors(path, tensors, lora_adapter_metadata='{"r": 2}')


def lora_alphas(run: Path) -> None:
    """Write LoRAs whose scale is a tensor, which differs."""
    for step in STEPS:
        tensors = {"q.lora_down.weight": torch.ones(2, 2) * step, "q.lora_up.weight": torch.ones(2, 2)}
        save_tensors(run / f"step-{step}.safetensors", {**tensors, "q.alpha": torch.tensor(float(step))})


def sentence_transformers(run: Path, *, tensors_in_module: bool = False) -> None:
    """Write a model with modules beside its transformer."""
    for step in STEPS:
        folder = run / f"checkpoint-{step}"
        hf_checkpoint(folder, step, model(step))
        save_text(folder / "modules.json", [{"path": ""}, {"path": "1_Pooling"}])
        save_text(folder / "1_Pooling" / "config.json", {"pooling": "mean"})
        if tensors_in_module:
            save_tensors(folder / "1_Pooling" / "model.safetensors", model(9))


def several_backends(run: Path) -> None:
    """Write a model that is there for other frameworks, too."""
    for step in STEPS:
        hf_checkpoint(run / f"checkpoint-{step}", step, model(step))
        for name in ("flax_model.msgpack", "tf_model.h5"):
            save_text(run / f"checkpoint-{step}" / name, "")


MAKERS: dict[str, Callable[[Path], object]] = {
    "accelerate": accelerate,
    "accelerate-two": accelerate_two,
    "hub-cache": hub_cache,
    "diffusers": diffusers,
    "diffusers-averages": diffusers_averages,
    "peft": _adapters(lambda step: {"target_modules": ["q", "v"] if step == 1 else ["v", "q"]}),
    "peft-ranks": _adapters(lambda step: {"r": step}),
    "diffusers-lora": diffusers_lora,
    "lora-alphas": lora_alphas,
    "sentence-transformers": sentence_transformers,
    "sentence-transformers-two": lambda run: sentence_transformers(run, tensors_in_module=True),
    "several-backends": several_backends,
}
