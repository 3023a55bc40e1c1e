"""Train a small model with FSDP2 and save it with torch.distributed.checkpoint, in the layouts of its users.

`python -m tests.trainers.write_dcp FOLDER`, in each process of the training. `FOLDER/truth/` holds the whole tensors of
each checkpoint, gathered by torch.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.trainers.ranks import gather, gloo, leave

LAYOUTS = ["torchtitan", "app", "plain"]
STEPS = [10, 20, 30, 40]
TOKENS_A_STEP = 64


class Net(nn.Module):
    """Every way in which a tensor can lie on two processes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)  # four rows here, three there
        self.wide = nn.Linear(6, 8, bias=False)  # three columns each
        self.small = nn.Linear(8, 5, dtype=torch.bfloat16)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 1)  # one row: nothing on the second process
        self.frozen = nn.Parameter(torch.randn(3, 2), requires_grad=False)  # not sharded
        self.register_buffer("temperature", torch.tensor(0.5))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int32))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return a score for each row of tokens."""
        hidden: torch.Tensor = self.wide(self.embed(tokens).mean(dim=1))
        hidden = self.small(hidden.bfloat16()).float()
        return self.head(self.norm(hidden)) * self.temperature


def shard(model: Net, mesh: Any) -> None:
    """Spread the parameters over the processes."""
    fully_shard(model.wide, mesh=mesh, shard_placement_fn=lambda _: Shard(1))
    fully_shard(model.small, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={model.frozen})
    # Buffers that somebody spread by hand: unevenly along dimension 1, and the same everywhere.
    model.register_buffer("uneven", distribute_tensor(torch.randn(3, 5), mesh, [Shard(1)]))
    model.register_buffer("same", distribute_tensor(torch.randn(2, 3), mesh, [Replicate()]))


class App(Stateful):
    """Model and optimizer as one object, as torch's tutorial saves them."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        self.model, self.optimizer, self.step = model, optimizer, step

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optimizer, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stateful asks for it; nothing here loads."""
        raise NotImplementedError


def state_to_save(layout: str, model: Net, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """Return what goes to dcp.save."""
    if layout == "app":
        return {"app": App(model, optimizer, step)}
    weights = get_model_state_dict(model)
    if layout == "plain":
        return {"model": weights, "step": step}
    assert layout == "torchtitan"
    if step == STEPS[-1]:
        return weights  # its last checkpoint is the model alone, unless it is told otherwise
    return {
        **weights,
        "optimizer": get_optimizer_state_dict(
            model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True)
        ),
        "lr_scheduler": {"last_epoch": step, "base_lrs": [0.05], "_last_lr": [0.05]},
        "dataloader": {"dp_rank_0": pickle.dumps({"at": step}), "world_size": 2},
        "train_state": {"step": step, "ntokens_seen": step * TOKENS_A_STEP},
    }


def main(folder: Path) -> None:
    """Train for 40 steps, on the same batches in both processes, and save every tenth."""
    with gloo() as rank:
        torch.manual_seed(3)
        model = Net()
        shard(model, init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.05)
        if rank == 0:
            (folder / "truth").mkdir(parents=True)
        torch.distributed.barrier()
        for step in range(1, STEPS[-1] + 1):
            tokens = torch.randint(7, (8, 4))
            (model(tokens) - tokens.float().mean(dim=1, keepdim=True)).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model.seen += 1
                for moving in (model.temperature, model.uneven, model.same):
                    moving.mul_(1.01)
            if step in STEPS:
                whole = gather(get_model_state_dict(model))
                if rank == 0:
                    save_file(whole, folder / "truth" / f"step-{step}.safetensors")
                for layout in LAYOUTS:
                    saved = state_to_save(layout, model, optimizer, step)
                    dcp.save(saved, checkpoint_id=folder / layout / "checkpoint" / f"step-{step}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
