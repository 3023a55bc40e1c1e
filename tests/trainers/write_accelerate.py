"""Save a small model that is spread over the processes with Accelerate's save_state.

`python -m tests.trainers.write_accelerate FOLDER`, in each process of the training. `FOLDER/dcp/checkpoints/` and
`FOLDER/ranks/checkpoints/` are what Accelerate wrote in its two ways, `FOLDER/truth/` the whole tensors of each save.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.trainers.ranks import gather, leave, let_torchvision_load

SAVES, INTERVAL = 3, 4


def main(folder: Path) -> None:
    """Train for 12 steps, saving every fourth."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, ProjectConfiguration, save_fsdp_model

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    accelerator = Accelerator(
        cpu=True,
        fsdp_plugin=plugin,
        project_config=ProjectConfiguration(str(folder / "dcp"), automatic_checkpoint_naming=True),
    )
    # It shards on GPUs only, unless it is told that it does.
    for state in (PartialState, AcceleratorState):
        state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    for step in range(SAVES * INTERVAL):
        accelerator.backward(model(torch.randn(4, 5)).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % INTERVAL == 0:
            save = step // INTERVAL
            whole = gather(model.state_dict())
            if accelerator.is_main_process:
                (folder / "truth").mkdir(parents=True, exist_ok=True)
                save_file(whole, folder / "truth" / f"{save}.safetensors")
            accelerator.save_state()
            save_fsdp_model(plugin, accelerator, model, folder / "ranks" / f"checkpoint_{save}", use_dcp=False)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    let_torchvision_load()
    main(Path(sys.argv[1]))
    leave()
