"""Train with DeepSpeed's own tensor parallel training, or go on from an average in its universal format.

`python -m tests.trainers.resume_tensor_parallel FOLDER STAGE train`, in each process, fills FOLDER/out. With
`universal` in place of `train` it loads `averaged/`, and compares what it has of the model, and of the optimizer's
float32 weights, with its part of `exact.safetensors`, cut by rules of its own; also after a step of length 0. Then it
takes one more.
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

# How parameters are cut: by rows, by columns, or in each third by rows. All others each process has whole.
ROWS = ("up.weight", "up.bias", "frozen.weight")
COLUMNS = ("down.weight", "out.weight", "back.weight")
THIRDS = ("qkv.weight",)


class Net(nn.Module):
    """A network with linear maps that are cut in each way, one of which may not train."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.qkv, self.out = nn.Linear(6, 12, bias=False), nn.Linear(4, 6, bias=False)
        self.frozen, self.back = nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)
        self.register_buffer("mean", torch.zeros(6))
        self.frozen.requires_grad_(not frozen)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the output."""
        values = self.embed(batch)
        self.mean.mul_(0.9).add_(0.1 * values.detach().mean(0))
        query, key, value = self.qkv(values).chunk(3, -1)
        values = values + self.down(self.up(values)) + self.out(query * key + value) + self.back(self.frozen(values))
        result: torch.Tensor = self.head(self.norm(values))
        return result


def part(name: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """Return what a process of two has of a tensor."""
    if name in THIRDS:
        return torch.cat([third.chunk(2)[rank] for third in whole.chunk(3)])
    return whole.chunk(2)[rank] if name in ROWS else whole.chunk(2, 1)[rank] if name in COLUMNS else whole


def make_engine(stage: int, *, universal: bool) -> Any:
    """Return DeepSpeed's engine."""
    torch.manual_seed(3)
    patterns = [(ROWS, "column", {}), (COLUMNS, "row", {}), (THIRDS, "column", {"shape": [3, -1], "partition_dim": 0})]
    specs = [
        {"patterns": [rf".*{name.replace('.', '[.]')}$" for name in names if name.endswith("weight")],
         "partition_type": kind, **more}
        for names, kind, more in patterns
    ]  # fmt: skip
    config = configuration(
        stage,
        "bfloat16",
        **zero(stage),
        train_micro_batch_size_per_gpu=2,
        tensor_parallel={
            "autotp_size": 2,
            "partition_config": {"use_default_specs": False, "layer_specs": specs},
        },
        checkpoint={"load_universal": universal},
    )
    model = Net(frozen=stage < 3)  # what does not train is in parts there, which the converter leaves
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.01)
    return start(model, optimizer, config)


def batch(number: int) -> torch.Tensor:
    """Return the batch of a step, which both processes have."""
    return torch.randint(5, (2,), generator=torch.Generator().manual_seed(number))


def main(folder: Path, stage: int, what: str) -> None:
    """Train, or load, compare and go on."""
    with deepspeed_on_cpu() as rank:
        engine = make_engine(stage, universal=what == "universal")

        def check(exact: Mapping[str, torch.Tensor], *, buffers: bool) -> None:
            """Compare what this process has with its part of the exact average."""
            assert not buffers
            parameters = dict(engine.module.named_parameters())
            for name, tensor in held(engine.module, stage).items():
                if name not in parameters:
                    continue
                own = part(name, exact[name], rank)
                torch.testing.assert_close(tensor, own.to(tensor.dtype), rtol=2**-7, atol=1e-6, msg=name)
            for name, tensor in masters(engine.module).items():
                torch.testing.assert_close(tensor, part(name, exact[name], rank), rtol=1e-6, atol=1e-7, msg=name)

        train_or_go_on(engine, folder, what, batch, check)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    leave()
