"""Trainings that keep few checkpoints, for a watch to run beside: transformers' Trainer, Lightning, a plain loop.

`python -m tests.trainers.write_watched KIND FOLDER`. `run/` is what the trainer leaves, `truth/STEP.safetensors` what
it had at each of its checkpoints, most of which are gone at the end.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from tests.trainers.ranks import let_torchvision_load

INTERVAL, STEPS = 5, 60
_PATIENCE_SECONDS = 120


def keep(folder: Path, step: int, tensors: dict[str, torch.Tensor]) -> None:
    """Write down what a checkpoint holds, before it is saved and takes the place of older ones.

    A training takes minutes from one to the next. This one takes none, and waits until the one before is folded.
    """
    kept, deadline = f"out*.watch/{step - INTERVAL}ba/watch.json", time.monotonic() + _PATIENCE_SECONDS
    while step > INTERVAL and not any(folder.glob(kept)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody has folded the checkpoint before {step}")
        time.sleep(0.02)
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / "truth" / f"{step}.safetensors")


def train_transformers(folder: Path) -> None:
    """Train a GPT-2 of a few parameters, with the last two checkpoints kept."""
    import transformers

    from tests.trainers.transformers_run import make_tokenizer

    class KeepTruth(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, _arguments: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step % INTERVAL == 0:
                names = {name for name in model.state_dict() if name != "lm_head.weight"}  # tied, and stored once
                keep(folder, state.global_step, {name: model.state_dict()[name] for name in names})

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=10, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    data = [{"input_ids": row, "labels": row} for row in torch.randint(2, 10, (64, 8))]
    arguments = transformers.TrainingArguments(
        str(folder / "run"),
        max_steps=STEPS,
        save_steps=INTERVAL,
        save_total_limit=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    transformers.Trainer(
        model=transformers.GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=data,
        processing_class=make_tokenizer(),
        callbacks=[KeepTruth()],
    ).train()


def train_lightning(folder: Path) -> None:
    """Train a layer, with the best checkpoint kept, which is the last: its monitor falls."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(5, 3)

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            self.log("falling", -float(self.global_step))
            loss: torch.Tensor = (self.net(batch[0]) - batch[0][:, :3]).pow(2).mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    class KeepTruth(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step % INTERVAL == 0:
                keep(folder, trainer.global_step, module.state_dict())

    torch.manual_seed(0)
    saver = ModelCheckpoint(folder / "run", monitor="falling", save_top_k=1, every_n_train_steps=INTERVAL)
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[KeepTruth(), saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(TensorDataset(torch.randn(4 * STEPS, 5)), batch_size=4))


def train_plainly(folder: Path) -> None:
    """Train a layer, and write one file over and over again, without any care."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(1, STEPS + 1):
        batch = torch.randn(4, 5)
        (model(batch) - batch[:, :3]).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % INTERVAL == 0:
            keep(folder, step, model.state_dict())
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, folder / "run" / "ckpt.pt")


TRAININGS = {"transformers": train_transformers, "lightning": train_lightning, "plain": train_plainly}

if __name__ == "__main__":
    let_torchvision_load()
    TRAININGS[sys.argv[1]](Path(sys.argv[2]))
