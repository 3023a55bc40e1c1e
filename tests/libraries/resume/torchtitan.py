"""torchtitan: two processes train with its optimizers and schedules, and its CheckpointManager saves and loads.

Its Trainer asks for CUDA; what it saves and loads with is the same here, on the CPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.libraries.resume.shared import assert_held, assert_trained, mean
from tests.trainers.ranks import gather, gloo, launch, leave

STEPS = (2, 4, 6)


class Training:
    """A small model in shards, its optimizers, schedules and checkpoints; its own state is the step."""

    def __init__(self, folder: Path, name: str, load: Path | None = None) -> None:
        from torchtitan.components.checkpoint import CheckpointManager
        from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig

        torch.manual_seed(0)
        layers = (torch.nn.Linear(3, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 5))
        self.model = fully_shard(torch.nn.Sequential(*layers))
        self.step = 0
        group = ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 0.01})
        config = OptimizersContainer.Config(param_groups=[group], implementation="for-loop")
        self.optimizers = config.build(model_parts=[self.model])
        schedule = LRSchedulersContainer.Config(warmup_steps=1)
        self.schedules = schedule.build(optimizers=self.optimizers, training_steps=100)
        saving = CheckpointManager.Config(
            enable=True, folder=name, interval=STEPS[0], keep_latest_k=0,
            initial_load_path=None if load is None else str(load), initial_load_model_only=False,
        )  # fmt: skip
        self.manager = saving.build(
            dataloader=None, model_parts=[self.model], optimizers=self.optimizers, lr_schedulers=self.schedules,
            states={"train_state": self}, sd_adapter=None, base_folder=str(folder),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what torchtitan's Trainer has for its own state."""
        return {"step": self.step, "ntokens_seen": 8 * self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self.step = state["step"]

    def train(self, steps: int) -> None:
        """Train up to a step, and save on the way."""
        while self.step < steps:
            self.step += 1
            self.optimizers.zero_grad()
            noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(self.step))
            self.model(noise).square().mean().backward()
            self.optimizers.step()
            self.schedules.step()
            self.manager.save(self.step)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the whole model, which each process has a part of."""
        assert any(isinstance(tensor, DTensor) for tensor in self.model.state_dict().values())
        return gather(self.model.state_dict())


def rank(what: str, folder: Path) -> None:
    """Do what one process does."""
    with gloo():
        if what == "train":
            Training(folder, "run").train(STEPS[-1])
            return
        saved = []
        for step in STEPS:
            training = Training(folder, "run")
            assert training.manager.load(step)
            assert training.step == step
            saved.append(training.weights())
        training = Training(folder, "on", folder / "averaged")
        assert training.manager.load()
        begun = training.weights()
        assert_held(begun, mean(saved))
        assert training.step == STEPS[-1]
        assert training.optimizers.state_dict()
        training.train(STEPS[-1] + 1)
        assert_trained(training.weights(), begun)


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(sys.argv[2], Path(sys.argv[1]))
        leave()
    else:
        launch("torchtitan", Path(sys.argv[2]).absolute(), sys.argv[1], package="tests.libraries.resume")
