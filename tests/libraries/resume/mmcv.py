"""mmcv 1.x: its EpochBasedRunner saves each epoch, and resumes from the average."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import EpochBasedRunner, load_checkpoint

from tests.libraries.resume.shared import assert_held, assert_trained, copied, main, mean


class Model(torch.nn.Module):
    """A model with statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

    def train_step(self, data: Any, optimizer: Any, **_: Any) -> Any:
        """Return the loss."""
        return {"loss": self.net(data).square().mean(), "log_vars": {}, "num_samples": len(data)}


def runner_of(folder: Path, epochs: int) -> Any:
    """Return a runner that saves each epoch."""
    folder.mkdir(exist_ok=True)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    runner = EpochBasedRunner(
        model, optimizer=optimizer, work_dir=str(folder), max_epochs=epochs, logger=logging.getLogger("mmcv")
    )
    runner.register_training_hooks(
        lr_config={"policy": "fixed"}, optimizer_config={"grad_clip": None}, checkpoint_config={"interval": 1}
    )
    return runner


def loader() -> Any:
    """Return batches of noise."""
    return torch.utils.data.DataLoader(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), batch_size=4)


def train(folder: Path) -> None:
    """Save three epochs."""
    runner_of(folder / "run", 3).run([loader()], [("train", 1)])


def resume(folder: Path) -> None:
    """Load the average by itself, and go on from it for a fourth epoch."""
    saved = [torch.load(folder / f"run/epoch_{epoch}.pth", weights_only=False) for epoch in (1, 2, 3)]
    exact, averaged = mean([each["state_dict"] for each in saved]), str(folder / "averaged.pth")
    model = Model()
    load_checkpoint(model, averaged, strict=True)
    assert_held(model.state_dict(), exact)
    runner = runner_of(folder / "on", 4)
    runner.resume(averaged, map_location="cpu")
    begun = copied(runner.model.state_dict())
    assert_held(begun, exact)
    assert runner.epoch == 3
    runner.run([loader()], [("train", 1)])
    assert_trained(runner.model.state_dict(), begun)


if __name__ == "__main__":
    main(train, resume)
