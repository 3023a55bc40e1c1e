"""Small runs in the layout of each trainer, built without its library: three checkpoints, 1, 2 and 3 steps old."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .distributed import save_folder
from .tensors import Net, Tensors, converted, model, save, save_legacy, save_tensors, save_text

STEPS = (1, 2, 3)
Wrap = Callable[[int], Mapping[str, Any]]
Make = Callable[[Path], object]
TIMESTAMP = {"epoch": 0, "sample": 0, "token": 0}


def each(name: str, wrap: Callable[[int], object], *, legacy: bool = False) -> Make:
    """Return a maker of one file for each step under `name`, in which {} is the step."""

    def make(run: Path) -> None:
        for step in STEPS:
            (save_legacy if legacy else save)(run / name.format(step), wrap(step))

    return make


def distributed(name: str, wrap: Wrap, mark: Callable[[Path, int], object] | None = None) -> Make:
    """Return a maker of a folder of torch.distributed.checkpoint for each step, and what is beside the shards."""

    def make(run: Path) -> None:
        for step in STEPS:
            folder = save_folder(run / name.format(step), wrap(step))
            if mark:
                mark(folder, step)

    return make


def averages(step: int) -> Tensors:
    """Return what a trainer's own average of the model might be."""
    return {name: tensor * 0.9 if tensor.is_floating_point() else tensor for name, tensor in model(step).items()}


def composer(step: int) -> dict[str, Any]:
    """Return what Composer saves, sharded or not."""
    timestamp = {"Timestamp": {**TIMESTAMP, "batch": step, "sample": 4 * step, "batch_in_epoch": step}}
    return {"state": {"model": model(step), "timestamp": timestamp, "optimizers": {"Adam": model(9)}}}


def composer_ema(*, active: bool) -> Wrap:
    """Return what wraps a step as Composer does with its EMA: the averages swapped in, or beside."""

    def wrap(step: int) -> dict[str, Any]:
        saved = composer(step)
        tensors, other = averages(step), model(step)
        if not active:
            tensors, other = other, tensors
        parts = {name: {f"module.{key}": tensor for key, tensor in part.items()} for name, part in _parts(other)}
        saved["state"]["model"] = tensors
        saved["state"]["algorithms"] = [("EMA", {"ema_weights_active": active, "ema_model": parts})]
        return saved

    return wrap


def _parts(tensors: Tensors) -> list[tuple[str, Tensors]]:
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    rest = {name: tensor for name, tensor in tensors.items() if name not in floats}
    return [("named_parameters_dict", floats), ("named_buffers_dict", rest)]


def composer_hf(prefix: str = "model.", **more: Any) -> Wrap:
    """Return what wraps a step as Composer does for a Hugging Face model: configuration and tokenizer inside."""
    config = {"model_type": "tiny", "eps": 1e-05, "limit": [0.0, float("inf")], "none": None}
    tokenizer: dict[str, Any] = {
        "tokenizer.json": {"file_extension": ".json", "content": {"model": {"vocab": {"\u5c64": 0, "a": 1}}}},
        "vocab": {"file_extension": ".txt", "content": ["[PAD]", "a", ""]},
        "spiece.model": {"file_extension": ".model", "content": bytes(range(256))},
        "tokenization_own.py": {"file_extension": ".py", "content": "raise SystemExit\n"},
    }

    def wrap(step: int) -> dict[str, Any]:
        saved = composer(step)
        kind = "transformers.models.tiny.modeling_tiny.TinyModel"
        described = {"config": {"file_extension": ".json", "content": config, "class": kind}}
        if "peft" in more:
            described["peft_config"] = {"file_extension": ".json", "content": more["peft"], "class": "peft"}
        kept = {"model": described, "tokenizer": {**tokenizer, **more.get("tokenizer", {})}}
        tensors = more.get("tensors", model)(step)
        saved["state"]["model"] = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        saved["state"]["integrations"] = {"huggingface": kept}
        return saved

    return wrap


def lora(step: int) -> Tensors:
    """Return the tensors of an adapter, as PEFT names them inside a model."""
    random = torch.Generator().manual_seed(step)
    names = ("q.lora_A.default.weight", "q.lora_B.default.weight", "v.lora_A.default.weight")
    return {f"base_model.model.{name}": torch.randn(2, 2, generator=random) for name in names}


def lightning(step: int) -> dict[str, Any]:
    """Return what Lightning saves in one file; the last in the middle of an epoch."""
    progress = {"fit_loop": {"epoch_loop.batch_progress": {"is_last_batch": step != STEPS[-1]}}}
    head = {"pytorch-lightning_version": "2.6.6", "epoch": step - 1, "global_step": 10 * step}
    return {**head, "state_dict": model(step), "loops": progress}


def mmengine(step: int) -> dict[str, Any]:
    """Return what MMEngine saves without its EMA."""
    return {"meta": {"epoch": step, "iter": 10 * step}, "state_dict": model(step), "message_hub": {}}


def mmengine_ema(step: int) -> dict[str, Any]:
    """Return what MMEngine saves with it: the two are swapped."""
    raw = {f"module.{name}": tensor for name, tensor in model(step).items()}
    return {**mmengine(step), "state_dict": averages(step), "ema_state_dict": {**raw, "steps": torch.tensor(step)}}


def fairseq(step: int) -> dict[str, Any]:
    """Return what fairseq saves at the end of an epoch, with its averages."""
    return {
        "args": None,
        "model": model(step),
        "optimizer_history": [{"num_updates": 10 * step}],
        "extra_state": {"train_iterator": {"epoch": step + 1, "iterations_in_epoch": 0}, "ema": averages(step)},
        "last_optimizer_state": {"state": {}},
    }


def opennmt(step: int, decay: float = 0) -> dict[str, Any]:
    """Return what OpenNMT-py saves: the generator apart from the rest."""
    tensors = model(step)
    generator = {"weight": tensors.pop("head.weight")}
    opt = argparse.Namespace(average_decay=decay)
    return {"model": tensors, "generator": generator, "opt": opt, "optim": {"training_step": step + 1}, "vocab": {}}


def ultralytics(step: int) -> dict[str, Any]:
    """Return what Ultralytics saves: averages as a whole module, and no model."""
    return {"model": None, "ema": Net(step), "train_args": {}, "epoch": step - 1, "updates": step}


def timm(run: Path) -> None:
    """Write timm's files: epochs from 0, averages beside, a hard link, one in the middle of an epoch."""
    for step in STEPS:
        saved = {"epoch": step - 1, "arch": "net", "version": 2, "args": argparse.Namespace(lr=1.0)}
        tensors = {"state_dict": model(step), "state_dict_ema": averages(step)}
        save(run / f"checkpoint-{step - 1}.pth.tar", {**saved, **tensors})
    (run / "last.pth.tar").hardlink_to(run / "checkpoint-2.pth.tar")
    save(run / "model_best.pth.tar", {**saved, "epoch": 1, "state_dict": model(2), "state_dict_ema": averages(2)})
    save(run / "recovery-3-50.pth.tar", {**saved, "epoch": 3, "state_dict": model(9)})


def espnet(run: Path) -> None:
    """Write espnet's files: bare state dicts, a link to the best, an average of its own."""
    each("{}epoch.pth", model)(run)
    (run / "valid.acc.best.pth").symlink_to("3epoch.pth")
    save(run / "valid.acc.ave_10best.pth", averages(9))
    save(run / "checkpoint.pth", {"model": model(3), "reporter": {"epoch": 3}})


def wenet(run: Path) -> None:
    """Write wenet's files: the clock in a .yaml beside each, epochs from 0, two steps in a batch."""
    for step in STEPS:
        save(run / f"{step - 1}.pt", model(step))
        save_text(run / f"{step - 1}.yaml", f"accum_grad: 2\ncv_loss: 1.0\nepoch: {step - 1}\nstep: {20 * step}\n")
    save(run / "step_50.pt", model(9))
    save_text(run / "step_50.yaml", "accum_grad: 2\nepoch: 2\nstep: 50\n")
    save(run / "avg_3.pt", averages(9))


def deepspeed(run: Path) -> None:
    """Write DeepSpeed's folders for one rank of tensors, in half precision, and the file that names the newest."""
    for step in (*STEPS, 4):
        saved = {"module": converted(model(step), torch.bfloat16), "global_steps": step, "global_samples": 8 * step}
        folder = run / f"global_step{step}"
        save(folder / "mp_rank_00_model_states.pt", {**saved, "ds_version": "0.19", "mp_world_size": 1})
        save(folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", {})
    save_text(run / "latest", "global_step3")


def titan(step: int) -> dict[str, Any]:
    """Return what torchtitan saves: the model at the top, the rest beside it, averages too."""
    tensors = model(step)
    floats = {name: tensor for name, tensor in averages(step).items() if tensor.is_floating_point()}
    ema = {f"state.{name}.ema_params": tensor for name, tensor in floats.items()}
    optimizer = {f"state.{name}.exp_avg": tensor for name, tensor in tensors.items()}
    beside = {"optimizer": optimizer, "lr_scheduler": {"last_epoch": step}, "ema": ema}
    return {**tensors, **beside, "train_state": {"step": step, "ntokens_seen": 100 * step}}


def lightning_meta(folder: Path, step: int) -> None:
    """Write what Lightning keeps beside the shards."""
    save(folder / "meta.pt", {"epoch": 0, "global_step": step, "pytorch-lightning_version": "2.6.6", "loops": {}})


def accelerate_fsdp(run: Path) -> None:
    """Write what Accelerate saves of two models under FSDP: a folder of shards for each, and no clock."""
    for step in STEPS:
        for number in (0, 1):
            folder = run / f"checkpoint_{step}" / f"pytorch_model_fsdp_{number}"
            save_folder(folder, {"model": model(step + 10 * number)})
        save_text(run / f"checkpoint_{step}" / "random_states_0.pkl", "never opened")


def own_callback(step: int) -> dict[str, Any]:
    """Return what our callback for Lightning saves with its average as the model."""
    return {**lightning(step), "ema_cli": {"average": "50ba"}}


def swa(step: int) -> Tensors:
    """Return the state dict of torch's AveragedModel."""
    return {"n_averaged": torch.tensor(step), **{f"module.{name}": tensor for name, tensor in model(step).items()}}


MAKERS: dict[str, Make] = {
    "plain-keyed": each("step-{}.ckpt", lambda step: {"net": {"w": model(step)}, "step": step}),
    "plain-two": each("step-{}.pt", lambda step: {"model": model(step), "state_dict": model(step), "step": step}),
    "plain-ema": each("step-{}.pt", lambda step: {"model": model(step), "ema": averages(step), "step": step}),
    "plain-beside": each("step-{}.pt", lambda step: {"model": model(step), "critic": model(9), "step": step}),
    "plain-values": each("step-{}.pt", lambda step: {**model(step), "version": "2", "none": None, "step": step}),
    "averaged-model": each("step-{}.pt", lambda step: {"model": swa(step), "step": step}),
    "averaged-safetensors": lambda run: [save_tensors(run / f"step-{step}.safetensors", swa(step)) for step in STEPS],
    "own-callback": each("epoch=0-step={}.ckpt", own_callback),
    "legacy-module": each("step-{}.pt", lambda step: {"model": torch.nn.DataParallel(Net(step))}, legacy=True),
    "dcp": distributed("step-{}", lambda step: {"model": model(step), "optim": model(9), "step": step}),
    "dcp-app": distributed("s{}", lambda step: {"app": {"model": model(step), "optim": model(9), "step": step}}),
    "dcp-ema": distributed("s{}", lambda step: {"model": model(step), "ema": averages(step), "step": step}),
    "dcp-flat": distributed("s{}", lambda step: {f"model.{k}": v for k, v in model(step).items()} | {"step": step}),
    "dcp-two": distributed("s{}", lambda step: {"a": {"model": model(step)}, "b": {"model": model(step)}}),
    "torchtitan": distributed("step-{}", titan),
    "composer": each("ep0-ba{}-rank0.pt", composer),
    "composer-sharded": distributed("ep0-ba{}", composer),
    "composer-ema-on": each("ep0-ba{}-rank0.pt", composer_ema(active=True)),
    "composer-ema-off": each("ep0-ba{}-rank0.pt", composer_ema(active=False)),
    "composer-hf": each("ep0-ba{}-rank0.pt", composer_hf()),
    "composer-hf-wrapped": each("ep0-ba{}-rank0.pt", composer_hf("module.model._orig_mod.")),
    "composer-hf-adapter": each(
        "ep0-ba{}-rank0.pt",
        composer_hf(tensors=lora, peft={"peft_type": "LORA", "r": 2, "base_model_name_or_path": "some/base"}),
    ),
    "composer-hf-odd": each(
        "ep0-ba{}-rank0.pt", composer_hf(tokenizer={"../out": {"file_extension": ".json", "content": {}}})
    ),
    "composer-hf-list": each(
        "ep0-ba{}-rank0.pt", composer_hf(tokenizer={"vocab2.txt": {"file_extension": ".txt", "content": 5}})
    ),
    "composer-hf-twice": each(
        "ep0-ba{}-rank0.pt", composer_hf(tokenizer={"vocab.txt": {"file_extension": ".txt", "content": ["a"]}})
    ),
    "composer-hf-object": each(
        "ep0-ba{}-rank0.pt", composer_hf(tokenizer={"a.json": {"file_extension": ".json", "content": {1: object()}}})
    ),
    "lightning": each("epoch=0-step={}0.ckpt", lightning),
    "lightning-averaging": each(
        "epoch=0-step={}.ckpt", lambda step: {**lightning(step), "current_model_state": averages(step)}
    ),
    "lightning-sharded": distributed("epoch=0-step={}.ckpt", lambda step: {"state_dict": model(step)}, lightning_meta),
    "deepspeed": deepspeed,
    "lightning-deepspeed": each(
        "epoch=0-step={}.ckpt/checkpoint/mp_rank_00_model_states.pt",
        lambda step: {"module": model(step), "pytorch-lightning_version": "2", "global_step": step, "epoch": 0},
    ),
    "olmo": distributed(
        "step{}/model_and_optim",
        lambda step: {"model": model(step), "optim": model(9)},
        lambda folder, step: save_text(folder.parent / ".metadata.json", "{}"),
    ),
    "nemo": distributed("x-step={}/weights", lambda step: {f"module.{k}": v for k, v in model(step).items()}),
    "accelerate-fsdp": accelerate_fsdp,
    "mmengine": each("epoch_{}.pth", mmengine),
    "mmengine-ema": each("epoch_{}.pth", mmengine_ema),
    "timm": timm,
    "fairseq": each("checkpoint{}.pt", fairseq),
    "nanogpt": each("ckpt{}.pt", lambda step: {"model": model(step), "model_args": {}, "iter_num": step}),
    "litgpt": each(
        "step-{:08}/lit_model.pth", lambda step: {"model": model(step), "iter_num": 4 * step, "step_count": step}
    ),
    "opennmt": each("model_step_{}.pt", opennmt),
    "opennmt-averaging": each("model_step_{}.pt", lambda step: opennmt(step, 0.1)),
    "ultralytics": each("epoch{}.pt", ultralytics),
    "espnet": espnet,
    "wenet": wenet,
    "icefall": each(
        "checkpoint-{}.pt", lambda step: {"model": model(step), "model_avg": averages(step), "batch_idx_train": step}
    ),
}
