"""Load averages with torch.distributed.checkpoint into a sharded model, compare, and train on from them.

`python -m tests.trainers.load_dcp FOLDER`, in each process of the training. FOLDER holds averages, each in a folder,
with the exact weights beside it in a file of that name; the one called `plain` holds the model under `model`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh

from tests.trainers.ranks import gather, gloo, leave
from tests.trainers.write_dcp import Net, shard


def main(folder: Path) -> None:
    """Load, compare and train, one average after the other."""
    with gloo():
        for exact in sorted(folder.glob("*.safetensors")):
            model = Net()
            shard(model, init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
            state = get_model_state_dict(model)
            dcp.load({"model": state} if exact.stem == "plain" else state, checkpoint_id=exact.with_suffix(""))
            set_model_state_dict(model, state)
            loaded = gather(get_model_state_dict(model))
            for name, tensor in load_file(exact).items():
                torch.testing.assert_close(loaded[name], tensor.to(loaded[name].dtype), rtol=1e-2, atol=1e-6)
            optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.05)
            tokens = torch.arange(32).reshape(8, 4) % 7
            model(tokens).pow(2).mean().backward()
            optimizer.step()
            assert not torch.equal(gather(get_model_state_dict(model))["embed.weight"], loaded["embed.weight"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
