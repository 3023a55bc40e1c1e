"""One of two processes that save one folder with torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from tests.two_forks import launch_two


def launch(folder: Path) -> Path:
    """Save from two processes, and return the folder that they filled."""
    launch_two("tests.formats.two_ranks", folder)
    return folder / "saved"


def spread(mesh: DeviceMesh) -> dict[str, torch.Tensor]:
    """Return tensors that lie on both processes, in every way in which they are cut."""
    placed: dict[str, tuple[torch.Tensor, Placement]] = {
        "rows": (torch.randn(7, 3), Shard(0)),
        "columns": (torch.randn(4, 5), Shard(1)),
        "middle": (torch.randn(2, 3, 4).bfloat16(), Shard(1)),
        "last": (torch.randn(2, 3, 5, dtype=torch.complex64), Shard(2)),
        "one.row": (torch.randn(1, 4), Shard(0)),  # nothing on the second process
        "vector": (torch.arange(9), Shard(0)),
        "same": (torch.randn(2, 2), Replicate()),
        "scalar": (torch.tensor(1.5), Replicate()),
        "empty": (torch.zeros(0, 3), Shard(0)),
        "turned": (torch.randn(6, 4).t(), Shard(0)),
        "bools": (torch.rand(5, 3) > 0.5, Shard(0)),
    }
    return {name: distribute_tensor(tensor, mesh, [placement]) for name, (tensor, placement) in placed.items()}


def both_ways(rank: int) -> sharded_tensor.ShardedTensor:
    """Return a tensor of 5 x 7 that is cut along both dimensions, two boxes on each process."""
    whole = torch.arange(35.0).reshape(5, 7)
    boxes = [[(0, 0, 2, 3), (2, 3, 3, 4)], [(0, 3, 2, 4), (2, 0, 3, 3)]][rank]
    shards = [
        LocalShard.from_tensor_and_offsets(whole[at : at + height, left : left + width].clone(), [at, left], rank)
        for at, left, height, width in boxes
    ]
    return sharded_tensor.init_from_local_shards(shards, 5, 7)


def main(folder: Path, rank: int) -> None:
    """Save."""
    torch.manual_seed(4)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = {**spread(init_device_mesh("cpu", (2,))), "both": both_ways(rank), "plain": torch.full((3,), 2.0)}
    dcp.save({"model": model, "optim": {"rows": torch.ones(3)}, "step": 8}, checkpoint_id=folder / "saved")
    torch.distributed.destroy_process_group()
