"""MMEngine: its Runner saves each epoch, and resumes from the average."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner

from tests.libraries.resume.shared import assert_held, assert_trained, copied, main, mean

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # without it MMEngine 0.10.7 loads none of its own checkpoints


class Data(torch.utils.data.Dataset[Any]):
    """Noise, the same each time."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return 20

    def __getitem__(self, number: int) -> Any:
        """Return one row."""
        return {"inputs": torch.randn(3, generator=torch.Generator().manual_seed(number))}


class Model(BaseModel):  # type: ignore[misc]
    """A model with statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

    def forward(self, inputs: Any, mode: str = "loss") -> Any:
        """Return the loss."""
        return {"loss": self.net(torch.stack(inputs)).square().mean()}


class Watch(Hook):  # type: ignore[misc]
    """Keeps the weights with which training begins."""

    def before_train(self, runner: Any) -> None:
        """Copy them, and the number of epochs before."""
        self.begun, self.epoch = copied(runner.model.state_dict()), runner.epoch


def run(folder: Path, epochs: int, **options: Any) -> Any:
    """Train up to an epoch."""
    runner = Runner(
        Model(), str(folder), experiment_name=folder.name, log_level="ERROR", default_scope="mmengine",
        train_dataloader={"dataset": Data(), "batch_size": 4, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}}, **options,
    )  # fmt: skip
    runner.train()
    return runner


def train(folder: Path) -> None:
    """Save three epochs."""
    run(folder / "run", 3)


def resume(folder: Path) -> None:
    """Go on from the average for a fourth, with the newest's optimizer and counters."""
    saved = [CheckpointLoader.load_checkpoint(str(folder / f"run/epoch_{epoch}.pth"), "cpu") for epoch in (1, 2, 3)]
    watch = Watch()
    averaged = str(folder / "averaged.pth")
    runner = run(folder / "on", 4, load_from=averaged, resume=True, custom_hooks=[watch])
    assert_held(watch.begun, mean([each["state_dict"] for each in saved]))
    assert watch.epoch == 3
    assert_trained(runner.model.state_dict(), watch.begun)


if __name__ == "__main__":
    main(train, resume)
