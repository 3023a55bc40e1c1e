"""Train with DeepSpeed, or go on from an average with all of the optimizer's state.

`python -m tests.trainers.resume_deepspeed FOLDER STAGE DTYPE train`, in each process, fills FOLDER/out. With `resume`
or `universal` in place of `train` it loads `averaged/`, whole, and compares with `exact.safetensors`: the model's
weights, and the float32 copies of the optimizer's; also after a step of length 0. Then it takes one more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.trainers.deepspeed_engine import configuration, deepspeed_on_cpu, held, masters, start, train_or_go_on, zero
from tests.trainers.ranks import leave


class Net(nn.Module):
    """A network with a part that does not train, a tied weight, and buffers, of sizes that need padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.frozen = nn.Linear(3, 3)
        self.body = nn.Sequential(nn.Linear(3, 7), nn.LayerNorm(7), nn.Linear(7, 3))
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.register_buffer("mean", torch.zeros(3))
        self.frozen.requires_grad_(False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the output."""
        values = self.frozen(self.embed(batch))
        self.mean.mul_(0.9).add_(0.1 * values.detach().mean(0))
        out: torch.Tensor = self.head(self.body(values) * self.scale)
        return out


def make_engine(stage: int, dtype: str, *, universal: bool) -> Any:
    """Return DeepSpeed's engine, over two groups of parameters."""
    torch.manual_seed(3)
    model = Net()
    named = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    groups = [
        {"params": [tensor for tensor in named.values() if tensor.ndim > 1]},
        {"params": [tensor for tensor in named.values() if tensor.ndim < 2], "weight_decay": 0.0},
    ]
    batch = 2 * torch.distributed.get_world_size()
    config = configuration(
        stage, dtype, **zero(stage), train_batch_size=batch, checkpoint={"load_universal": universal}
    )
    return start(model, torch.optim.AdamW(groups, lr=0.01), config)


def main(folder: Path, stage: int, dtype: str, what: str) -> None:
    """Train, or load, compare and go on."""
    with deepspeed_on_cpu():
        engine = make_engine(stage, dtype, universal=what == "universal")

        def check(exact: Mapping[str, torch.Tensor], *, buffers: bool) -> None:
            """Compare the model's weights with the exact ones, rounded once, and the optimizer's as they are."""
            parameters = dict(engine.module.named_parameters())
            for name, tensor in held(engine.module, stage).items():
                if name in parameters or buffers:
                    torch.testing.assert_close(tensor, exact[name].to(tensor.dtype), rtol=1e-2, atol=1e-6, msg=name)
            for name, tensor in masters(engine.module).items():
                torch.testing.assert_close(tensor, exact[name].float(), rtol=1e-6, atol=1e-7, msg=name)

        train_or_go_on(engine, folder, what, lambda number: torch.randint(5, (2,)), check)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    leave()
