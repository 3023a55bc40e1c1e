"""Train with DeepSpeed's own tensor parallel training, or go on from an average in its universal format.

`python -m tests.trainers.resume_tensor_parallel FOLDER STAGE train`, in each process, fills FOLDER/out. With `resume`
in place of `train` it loads `averaged/`, and compares what it has of the model, and of the optimizer's float32 weights,
with its part of `exact.safetensors`, cut by rules of its own; also after a step of length 0. Then it takes one more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from tests.trainers.ranks import gloo

STEPS = (2, 4)
# How parameters are cut: by rows, by columns, or in each third by rows. All others each process has whole.
ROWS = ("up.weight", "up.bias", "frozen.weight")
COLUMNS = ("down.weight", "out.weight", "back.weight")
THIRDS = ("qkv.weight",)


class Net(nn.Module):
    """A network with linear maps that are cut in each way, some of which do not train."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.qkv, self.out = nn.Linear(6, 12, bias=False), nn.Linear(4, 6, bias=False)
        self.frozen, self.back = nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)
        self.register_buffer("mean", torch.zeros(6))
        for module in (self.frozen, self.norm):
            module.requires_grad_(module is not self.frozen)

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


def start(stage: int, *, universal: bool = False) -> Any:
    """Return DeepSpeed's engine."""
    import deepspeed

    torch.manual_seed(3)
    patterns = [(ROWS, "column", {}), (COLUMNS, "row", {}), (THIRDS, "column", {"shape": [3, -1], "partition_dim": 0})]
    specs = [
        {"patterns": [rf".*{name.replace('.', '[.]')}$" for name in names if name.endswith("weight")],
         "partition_type": kind, **more}
        for names, kind, more in patterns
    ]  # fmt: skip
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 4},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": True},
        "tensor_parallel": {
            "autotp_size": 2,
            "partition_config": {"use_default_specs": False, "layer_specs": specs},
        },
        "checkpoint": {"load_universal": universal},
    }
    model = Net()
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.01)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


def step(engine: Any, length: float, number: int) -> None:
    """Take a step of the optimizer, on a batch that both processes have."""
    for group in engine.optimizer.param_groups:
        group["lr"] = length
    batch = torch.randint(5, (2,), generator=torch.Generator().manual_seed(number))
    engine.backward(engine(batch).float().pow(2).mean())
    engine.step()


def masters(engine: Any) -> dict[str, torch.Tensor]:
    """Return the optimizer's float32 weights of what this process has."""
    import deepspeed

    named = {name: tensor for name, tensor in engine.module.named_parameters() if tensor.requires_grad}
    return {name: deepspeed.utils.safe_get_full_fp32_param(tensor).clone() for name, tensor in named.items()}


def check(engine: Any, exact: dict[str, torch.Tensor], rank: int) -> None:
    """Compare what this process has with its part of the exact average."""
    for name, tensor in engine.module.named_parameters():
        own = part(name, exact[name], rank)
        torch.testing.assert_close(tensor.detach(), own.to(tensor.dtype), rtol=2**-7, atol=1e-6, msg=name)
    for name, tensor in masters(engine).items():
        torch.testing.assert_close(tensor.float(), part(name, exact[name], rank), rtol=1e-6, atol=1e-7, msg=name)


def main(folder: Path, stage: int, what: str) -> None:
    """Train, or load, compare and go on."""
    import deepspeed

    # It would compile an operator that shares memory between processes, to be faster.
    deepspeed.ops.__compatible_ops__.update(dict.fromkeys(deepspeed.ops.__compatible_ops__, False))
    with gloo() as rank:
        deepspeed.init_distributed("gloo")
        engine = start(stage, universal=what == "resume")
        if what == "train":
            for number in range(1, STEPS[-1] + 1):
                step(engine, 0.05, number)
                if number in STEPS:
                    engine.save_checkpoint(str(folder / "out"))
            engine.destroy()
            return
        exact = load_file(folder / "exact.safetensors")
        loaded, _ = engine.load_checkpoint(str(folder), tag="averaged")
        assert loaded is not None
        check(engine, exact, rank)
        step(engine, 0.0, 5)
        check(engine, exact, rank)
        before = masters(engine)
        step(engine, 0.05, 6)
        assert all(not torch.equal(tensor, before[name]) for name, tensor in masters(engine).items())
        engine.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
