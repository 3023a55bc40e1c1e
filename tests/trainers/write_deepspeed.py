"""Train with DeepSpeed and save as it does.

`python -m tests.trainers.write_deepspeed FOLDER`, in each process of the training. For each ZeRO stage and dtype, as
`1-bfloat16/`, it writes `out/` and beside it `truth-STEP.safetensors`, the weights that the model held.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.trainers.ranks import gloo, leave

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


def train(folder: Path, stage: int, dtype: str) -> None:
    """Train for 12 steps, saving every fourth."""
    import deepspeed

    torch.manual_seed(4)
    model = Net()
    config = {
        "train_batch_size": BATCH * torch.distributed.get_world_size(),
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=config, dist_init_required=False
    )
    for step in range(1, STEPS[-1] + 1):
        batch = torch.randn(BATCH, 5, dtype=getattr(torch, dtype))
        engine.backward(engine(batch).float().pow(2).mean())
        engine.step()
        if step in STEPS:
            engine.save_checkpoint(str(folder / "out"))
            with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
                whole = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            if torch.distributed.get_rank() == 0:
                save_file(whole, folder / f"truth-{step}.safetensors")
    engine.destroy()


def main(folder: Path) -> None:
    """Write a run of each kind."""
    import deepspeed

    # It would compile an operator that shares memory between processes, to be faster.
    deepspeed.ops.__compatible_ops__.update(dict.fromkeys(deepspeed.ops.__compatible_ops__, False))
    with gloo():
        deepspeed.init_distributed("gloo")
        for stage, dtype in KINDS:
            train(folder / f"{stage}-{dtype}", stage, dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
