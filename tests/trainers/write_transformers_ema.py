"""Train with transformers' Trainer and averages; as a process of its own, in a training of two.

`python -m tests.trainers.write_transformers_ema FOLDER KIND`: `FOLDER/whole/` is what the Trainer wrote in 12 steps,
`FOLDER/again/` the same up to step 6 and then, as it was resumed from there, to the end. Of the first,
`FOLDER/RANK-step-N.safetensors` is the model after each step, `FOLDER/RANK.json` the losses of the evaluations.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.trainers.ranks import gather, let_torchvision_load

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
from tests.trainers.test_transformers import make_tokenizer

STEPS, EVERY = 12, 6  # optimizer steps, and how often the Trainer saves
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
    return AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=DTYPES[kind])


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


def main(folder: Path, kind: str) -> None:
    """Train without a stop, and with one."""
    recorder = Recorder()
    options: dict[str, Any] = {"trainer": AveragingTrainer, "eval_strategy": "steps", "eval_steps": EVERY}
    whole = make_trainer(folder / "whole", make_model(kind), EMACallback("4ba"), recorder, **options)
    whole.train()
    rank = whole.args.process_index
    for step, tensors in enumerate(recorder.seen, start=1):
        save_file({name: each.clone() for name, each in tensors.items()}, folder / f"{rank}-step-{step}.safetensors")
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    (folder / f"{rank}.json").write_text(json.dumps(losses))
    if rank == 0:
        shutil.copytree(folder / "whole" / f"checkpoint-{EVERY}", folder / "again" / f"checkpoint-{EVERY}")
    torch.distributed.barrier()
    again = make_trainer(folder / "again", make_model(kind), EMACallback("4ba"), **options)
    again.train(resume_from_checkpoint=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
