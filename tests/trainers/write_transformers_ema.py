"""Train with transformers' Trainer and averages; as a process of its own, in a training of two.

`python -m tests.trainers.write_transformers_ema FOLDER gpt2|llama ddp|fsdp2`: `FOLDER/whole/` is what the Trainer wrote
in 12 steps, `FOLDER/again/` the same up to step 6 and then, as it was resumed from there, to the end. Of the first,
`FOLDER/RANK-step-N.safetensors` is the model after each step, `RANK-best.safetensors` what the trainer held at the end,
`RANK.json` the losses of the evaluations.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.trainers.ranks import gather, leave, let_torchvision_load

if __name__ == "__main__":
    let_torchvision_load()
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ema_cli.integrations.transformers import EMACallback, EMATrainerMixin
from tests.trainers.transformers_run import make_tokenizer

STEPS, EVERY = 12, 6  # optimizer steps, and how often the Trainer saves
HALF_LIVES = ("4ba", "9ba")  # in a training of two processes
CONFIGS: dict[str, Any] = {
    # In float32, its embeddings tied, with dropout; and in bfloat16, its embeddings apart.
    "gpt2": GPT2Config(vocab_size=10, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip
DTYPES = {"gpt2": torch.float32, "llama": torch.bfloat16}


class AveragingTrainer(EMATrainerMixin, Trainer):  # type: ignore[misc]
    """What a user writes."""


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Keeps the model after each step, and stops after step `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.seen: list[dict[str, torch.Tensor]] = []
        self.epochs: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the model."""
        self.seen.append(gather(kwargs["model"].state_dict()))
        self.epochs.append(state.epoch)
        if state.global_step == self.stop:
            control.should_training_stop = True


def make_model(kind: str) -> Any:
    """Return a small model, the same each time."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[kind])  # as a Trainer writes the tokenizer's padding into it
    return AutoModelForCausalLM.from_config(config, dtype=DTYPES[kind])


def make_trainer(folder: Path, model: Any, *callbacks: Any, trainer: Any = Trainer, **options: Any) -> Any:
    """Return a Trainer for 12 steps, of two batches each: an epoch is 8 of them."""
    rows = torch.randint(2, 10, (80, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments: dict[str, Any] = {
        "max_steps": STEPS, "save_steps": EVERY, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2, "logging_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return trainer(
        model=model,
        args=TrainingArguments(str(folder), **arguments | options),
        train_dataset=data[:64],
        eval_dataset=data[64:],
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )


def shard(trainer: Any) -> None:
    """Make a Trainer shard its model (FSDP2), which it does on GPUs only, unless Accelerate is told that it does."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    for state in (PartialState, AcceleratorState):
        state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    trainer.is_fsdp_enabled = True


def main(folder: Path, kind: str, way: str) -> None:
    """Train without a stop, and with one."""
    options: dict[str, Any] = {
        "trainer": AveragingTrainer, "eval_strategy": "steps", "eval_steps": EVERY, "load_best_model_at_end": True,
    }  # fmt: skip
    if (kind, way) == ("llama", "fsdp2"):
        # Where it saves shards, the Trainer looks for the best checkpoint's folder before some process has made it.
        options["load_best_model_at_end"] = False
    if way == "fsdp2":
        # Checkpoints hold the whole model, or, of the other kind, its shards.
        layer, saved = {
            "gpt2": ("GPT2Block", "FULL_STATE_DICT"), "llama": ("LlamaDecoderLayer", "SHARDED_STATE_DICT"),
        }[kind]  # fmt: skip
        options |= {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": [layer], "state_dict_type": saved}}

    def train(name: str, *callbacks: Any, resume: bool = False) -> Any:
        trainer = make_trainer(folder / name, make_model(kind), EMACallback(HALF_LIVES), *callbacks, **options)
        if way == "fsdp2":
            shard(trainer)
        trainer.train(resume_from_checkpoint=resume)
        torch.distributed.barrier()
        return trainer

    recorder = Recorder()
    whole = train("whole", recorder)
    rank = whole.args.process_index
    for step, tensors in enumerate(recorder.seen, start=1):
        save_file({name: each.clone() for name, each in tensors.items()}, folder / f"{rank}-step-{step}.safetensors")
    save_file(gather(whole.model.state_dict()), folder / f"{rank}-best.safetensors")
    losses = {each["step"]: each["eval_loss"] for each in whole.state.log_history if "eval_loss" in each}
    best = whole.state.best_global_step if options["load_best_model_at_end"] else None
    (folder / f"{rank}.json").write_text(json.dumps({"losses": losses, "best": best}))
    if rank == 0:
        shutil.copytree(folder / "whole" / f"checkpoint-{EVERY}", folder / "again" / f"checkpoint-{EVERY}")
    torch.distributed.barrier()
    train("again", resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    leave()
