"""Models cut over two processes, each of which saves its pieces in safetensors.

`python -m library_files.pieces FOLDER` is one of the processes; torch's environment variables say which.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

_PLACES = {"body.weight": 1, "body.bias": 1, "norm.weight": 2, "norm.bias": 2, "head.weight": 1, "same": 2, "step": 2}


def _model() -> Any:
    """Return the state of a model in parts: FSDP2's rows, which do not divide evenly, columns, and copies."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    net = nn.Sequential(OrderedDict(body=nn.Linear(3, 5), norm=nn.LayerNorm(5)))
    fully_shard(net, mesh=mesh)
    head = distribute_tensor(torch.randn(4, 6).bfloat16(), mesh, [Shard(1)])
    same = distribute_tensor(torch.randn(2, 2), mesh, [Replicate()])
    return {**net.state_dict(), "head.weight": head, "same": same, "step": torch.tensor(0)}


def main(made: Path) -> None:
    """Save three times, as each process does for itself; once more with one model put together, as torch does it."""
    import torch
    import torch.distributed.checkpoint as dcp

    torch.distributed.init_process_group("gloo")
    torch.manual_seed(5)
    state = _model()
    for step in (10, 20, 30):
        with torch.no_grad():
            for tensor in state.values():
                tensor += step
        own = dcp.HuggingFaceStorageWriter(str(made / "pieces" / f"step-{step}"), _PLACES, save_distributed=True)
        dcp.save(state, storage_writer=own)
        together = dcp.HuggingFaceStorageWriter(
            str(made / "together" / f"step-{step}"), save_distributed=True, enable_consolidation=True
        )
        # It does not put together whole numbers: it asks torch.finfo for their size.
        dcp.save({name: tensor for name, tensor in state.items() if name != "step"}, storage_writer=together)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
