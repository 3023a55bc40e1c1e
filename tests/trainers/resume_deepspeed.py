"""Train with DeepSpeed, or go on from an average with all of the optimizer's state.

`python -m tests.trainers.resume_deepspeed FOLDER STAGE DTYPE train`, in each process, fills FOLDER/out. With `resume`
or `universal` in place of `train` it loads `averaged/`, whole, and compares with `exact.safetensors`: the model's
weights, and the float32 copies of the optimizer's; also after a step of length 0. Then it takes one more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from tests.trainers.ranks import gloo, leave

STEPS = (2, 4)


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


def start(stage: int, dtype: str, *, universal: bool = False) -> Any:
    """Return DeepSpeed's engine, over two groups of parameters."""
    import deepspeed

    torch.manual_seed(3)
    model = Net()
    named = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    groups = [
        {"params": [tensor for tensor in named.values() if tensor.ndim > 1]},
        {"params": [tensor for tensor in named.values() if tensor.ndim < 2], "weight_decay": 0.0},
    ]
    config = {
        "train_batch_size": 2 * torch.distributed.get_world_size(),
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 4},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "checkpoint": {"load_universal": universal},
    }
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


def step(engine: Any, length: float) -> None:
    """Take a step of the optimizer."""
    for group in engine.optimizer.param_groups:
        group["lr"] = length
    engine.backward(engine(torch.randint(5, (2,))).float().pow(2).mean())
    engine.step()


def check(engine: Any, stage: int, exact: dict[str, torch.Tensor], *, buffers: bool) -> None:
    """Compare the model's weights with the exact ones, rounded once, and the optimizer's with them as they are."""
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=stage == 3):
        held = {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}
    for name, tensor in held.items():
        if name in parameters or buffers:
            torch.testing.assert_close(tensor, exact[name].to(tensor.dtype), rtol=1e-2, atol=1e-6, msg=name)
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            master = deepspeed.utils.safe_get_full_fp32_param(parameter)
            torch.testing.assert_close(master.float(), exact[name].float(), rtol=1e-6, atol=1e-7, msg=name)


def main(folder: Path, stage: int, dtype: str, what: str) -> None:
    """Train, or load, compare and go on."""
    import deepspeed

    # It would compile an operator that shares memory between processes, to be faster.
    deepspeed.ops.__compatible_ops__.update(dict.fromkeys(deepspeed.ops.__compatible_ops__, False))
    with gloo():
        deepspeed.init_distributed("gloo")
        engine = start(stage, dtype, universal=what == "universal")
        if what == "train":
            for number in range(1, STEPS[-1] + 1):
                step(engine, 0.05)
                if number in STEPS:
                    engine.save_checkpoint(str(folder / "out"))
            engine.destroy()
            return
        exact = load_file(folder / "exact.safetensors")
        loaded, _ = engine.load_checkpoint(str(folder), tag="averaged")
        assert loaded is not None
        check(engine, stage, exact, buffers=what == "resume")  # of the universal format DeepSpeed loads none
        step(engine, 0.0)
        check(engine, stage, exact, buffers=False)
        before = deepspeed.utils.safe_get_full_fp32_param(engine.module.scale).clone()
        step(engine, 0.05)
        assert not torch.equal(deepspeed.utils.safe_get_full_fp32_param(engine.module.scale), before)
        engine.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    leave()
