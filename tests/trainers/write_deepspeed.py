"""Train with DeepSpeed and save as it does.

`python -m tests.trainers.write_deepspeed FOLDER`, in each process of the training. For each ZeRO stage and dtype, as
`1-bfloat16/`, it writes `out/` and beside it `truth-STEP.safetensors`, the weights that the model held.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.trainers.deepspeed_engine import configuration, deepspeed_on_cpu, held, start, step
from tests.trainers.ranks import leave

STEPS = [4, 8, 12]
BATCH = 4
KINDS = [(0, "float32"), (0, "bfloat16"), (1, "bfloat16"), (2, "float32"), (3, "float32")]


class Net(nn.Module):
    """A small network with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the output, and count the batch."""
        self.seen += 1
        out: torch.Tensor = self.body(batch)
        return out


def make_engine(stage: int, dtype: str, length: float) -> Any:
    """Return DeepSpeed's engine over a network, with steps of a length."""
    model = Net()
    config = configuration(stage, dtype, train_batch_size=BATCH * torch.distributed.get_world_size())
    return start(model, torch.optim.SGD(model.parameters(), lr=length), config)


def train(folder: Path, stage: int, dtype: str) -> None:
    """Train for 12 steps, saving every fourth."""
    torch.manual_seed(4)
    engine = make_engine(stage, dtype, 0.1)
    for number in range(1, STEPS[-1] + 1):
        step(engine, torch.randn(BATCH, 5, dtype=getattr(torch, dtype)))
        if number in STEPS:
            engine.save_checkpoint(str(folder / "out"))
            whole = held(engine.module, stage)
            if torch.distributed.get_rank() == 0:
                save_file(whole, folder / f"truth-{number}.safetensors")
    engine.destroy()


def main(folder: Path) -> None:
    """Write a run of each kind."""
    with deepspeed_on_cpu():
        for stage, dtype in KINDS:
            train(folder / f"{stage}-{dtype}", stage, dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
