"""Train with Accelerate and averages, in each process of a training of two: all of it, or the second half again.

`python -m tests.trainers.write_accelerate_ema FOLDER ddp|fsdp2 whole|resumed`. `FOLDER/state` is what save_state wrote
after step 6 of 12; `FOLDER/WHOLE-OR-RESUMED/` holds the averages at the end as each process has them
(`RANK-25ba.safetensors`) and, of the whole training, the model after each step (`step-N.safetensors`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ema_cli import EMA
from tests.trainers.ranks import gather, leave

STEPS, SAVED_AFTER = 12, 6
HALF_LIVES = ("3ba", "8ba")


def make_accelerator(kind: str) -> Any:
    """Return Accelerate's entry, for a training on the CPU."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    if kind == "ddp":
        return Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # It shards on GPUs only, unless it is told that it does.
    for state in (PartialState, AcceleratorState):
        state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    return accelerator


def main(folder: Path, kind: str, part: str) -> None:
    """Train 12 steps, or the last six."""
    from ema_cli.integrations.accelerate import Gathered

    accelerator = make_accelerator(kind)
    rank, results = accelerator.process_index, folder / part
    results.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    ema = EMA(model, HALF_LIVES)
    accelerator.register_for_checkpointing(ema if kind == "ddp" else Gathered(ema))
    done = 0
    if part == "resumed":
        accelerator.load_state(str(folder / "state"))
        done = SAVED_AFTER
    for step in range(done + 1, STEPS + 1):
        batch = torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * step + rank))
        accelerator.backward(model(batch).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        whole = gather(accelerator.unwrap_model(model).state_dict())
        if part == "whole" and rank == 0:
            save_file(whole, results / f"step-{step}.safetensors")
        if part == "whole" and step == SAVED_AFTER:
            accelerator.save_state(str(folder / "state"))
    for name in ema.names:
        with ema.applied(name):
            held = gather(accelerator.unwrap_model(model).state_dict())
        save_file(held, results / f"{rank}-{name}.safetensors")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    leave()
