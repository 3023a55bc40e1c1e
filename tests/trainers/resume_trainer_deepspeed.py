"""The Hugging Face Trainer under DeepSpeed, in two processes: train, or go on from an average.

`python -m tests.trainers.resume_trainer_deepspeed FOLDER STAGE train`, in each process, fills FOLDER/run. With `resume`
in place of `train` the Trainer resumes from FOLDER/on/checkpoint-4, and what the model and the optimizer hold when
training begins is compared with `exact.safetensors`; then it takes one more step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.trainers.deepspeed_engine import STEPS, compile_nothing, configuration, held, masters, zero
from tests.trainers.ranks import leave, let_torchvision_load


def trainer(folder: Path, stage: int, steps: int, callbacks: list[Any]) -> Any:
    """Return a Trainer of a small model."""
    from transformers import AutoModelForCausalLM, GPT2Config, Trainer, TrainingArguments

    config = configuration(stage, "bfloat16", **zero(stage), train_micro_batch_size_per_gpu="auto")
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=STEPS[0], per_device_train_batch_size=2, learning_rate=1e-2,
        use_cpu=True, report_to=[], disable_tqdm=True, bf16=True, deepspeed=config,
        lr_scheduler_type="constant", ddp_backend="gloo", save_strategy="steps" if steps == STEPS[-1] else "no",
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=16, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(2, 10, (64, 8))]
    return Trainer(model=model, args=arguments, train_dataset=data, callbacks=callbacks)


def watch(stage: int, exact: dict[str, torch.Tensor]) -> Any:
    """Return a callback that compares weights when training begins, and sees that they change."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Compares."""

        def on_step_begin(self, *_: Any, model: Any, **__: Any) -> None:
            self.begun = masters(model)
            whole = held(model, stage)
            for name, tensor in self.begun.items():
                own = whole[name]
                torch.testing.assert_close(tensor, exact[name].float(), rtol=1e-6, atol=1e-7, msg=name)
                torch.testing.assert_close(own, exact[name].to(own.dtype), rtol=1e-2, atol=1e-6, msg=name)

        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            self.changed = any(not torch.equal(tensor, self.begun[name]) for name, tensor in masters(model).items())

    return Watch()


def main(folder: Path, stage: int, what: str) -> None:
    """Train, or resume, compare and go on."""
    let_torchvision_load()
    compile_nothing()
    if what == "train":
        trainer(folder / "run", stage, STEPS[-1], []).train()
    else:
        seen = watch(stage, load_file(folder / "exact.safetensors"))
        resumed = trainer(folder / "on", stage, STEPS[-1] + 1, [seen])
        resumed.train(resume_from_checkpoint=str(folder / "on" / f"checkpoint-{STEPS[-1]}"))
        assert resumed.state.global_step == STEPS[-1] + 1
        assert seen.changed


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    leave()
