"""Files as each rank saves them, of ranks that torch's stand-in for a network plays one after the other."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

VERL = "model_world_size_{world}_rank_{rank}.pt"


@dataclass(frozen=True)
class Cut:
    """A whole tensor, with the placements by which ranks share it; `sides` is the mesh, where it is a part of all."""

    whole: torch.Tensor
    placements: Sequence[Placement]
    sides: tuple[str, ...] | None = None


@contextmanager
def playing(rank: int, world: int) -> Iterator[None]:
    """Be one rank of several."""
    hook = sys.excepthook  # which torch replaces
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def own_share(cut: Cut, mesh: DeviceMesh) -> DTensor:
    """Return what this rank has of a tensor, cut by torch itself."""
    own = mesh if cut.sides is None else mesh[cut.sides]
    return distribute_tensor(cut.whole, own, list(cut.placements), src_data_rank=None)


def save_ranks(
    folder: Path,
    state: Mapping[str, Any],
    mesh: Mapping[str, int],
    *,
    name: str = VERL,
    ranks: Sequence[int] | None = None,
    per_rank: Mapping[int, Mapping[str, Any]] | None = None,
    zipped: bool = True,
) -> Path:
    """Save what each rank has of a state dict, in which `Cut` stands for what they share.

    Args:
        folder: takes the files.
        state: the state dict.
        mesh: the ranks, by the names of the dimensions of their mesh.
        name: of the files.
        ranks: those that save; all, if that is not said.
        per_rank: what some ranks have otherwise.
        zipped: whether in the newer of torch's formats.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = prod(mesh.values())
    for rank in range(world) if ranks is None else ranks:
        with playing(rank, world):
            device_mesh = init_device_mesh("cpu", tuple(mesh.values()), mesh_dim_names=tuple(mesh))
            own = {**state, **(per_rank or {}).get(rank, {})}
            path = folder / name.format(world=world, rank=rank)
            torch.save(_shares(own, device_mesh), path, _use_new_zipfile_serialization=zipped)
    return folder


def _shares(value: Any, mesh: DeviceMesh) -> Any:
    if isinstance(value, dict):
        return {key: _shares(item, mesh) for key, item in value.items()}
    return own_share(value, mesh) if isinstance(value, Cut) else value


def save_sharded(
    folder: Path,
    whole: torch.Tensor,
    boxes: Sequence[Sequence[tuple[tuple[int, ...], tuple[int, ...]]]],
    *,
    name: str = VERL,
    state_of: Callable[[Any], Mapping[str, Any]] = lambda tensor: {"shared": tensor},
) -> Path:
    """Save a ShardedTensor, of which each rank has the boxes that are listed for it: offsets and sizes.

    `state_of` gives what a rank saves, of its tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rank, own in enumerate(boxes):
        with playing(rank, len(boxes)):
            shards = [
                LocalShard.from_tensor_and_offsets(_box(whole, offsets, sizes).clone(), list(offsets), rank)
                for offsets, sizes in own
            ]
            listed = [
                ShardMetadata(list(offsets), list(sizes), placement=f"rank:{holder}/cpu")
                for holder, theirs in enumerate(boxes)
                for offsets, sizes in theirs
            ]
            metadata = sharded_tensor.ShardedTensorMetadata(
                listed, whole.size(), sharded_tensor.TensorProperties(whole.dtype)
            )
            tensor = sharded_tensor.ShardedTensor._init_from_local_shards_and_global_metadata(
                shards, metadata, init_rrefs=False
            )
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # DTensor has taken its place
                torch.save(state_of(tensor), folder / name.format(world=len(boxes), rank=rank))
    return folder


def _box(whole: torch.Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    for dimension, (at, length) in enumerate(zip(offsets, sizes, strict=True)):
        whole = whole.narrow(dimension, at, length)
    return whole
