"""Models that ranks share, each of which saves its own part: torch's FSDP as verl saves it, and torch_checkpointing.

`python -m library_files.ranks FOLDER KIND` is one process of a training; torch's environment variables say which.
"""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from library_files.folders import fresh
from library_files.processes import launch

_STEPS = (10, 20)
_RANKS = {"fsdp2": 2, "hsdp": 4, "fsdp2-tp": 4, "fsdp1": 2}


def fsdp(folder: Path) -> Path:
    """Train with FSDP, of two and four processes, and save as verl does; `expected/` has what torch gathers."""
    made = fresh(folder, "torch", "torch-fsdp")
    for kind, ranks in _RANKS.items():
        launch("library_files.ranks", ranks, str(made), kind)
    return made


def torch_checkpointing(folder: Path) -> Path:
    """Save a model that FSDP2 shares with torch_checkpointing, as torchtitan does from 0.3 on."""
    made = fresh(folder, "torch_checkpointing")
    launch("library_files.ranks", 2, str(made), "items")
    return made


def _model(kind: str) -> tuple[Any, Callable[[], Mapping[str, Any]]]:
    """Return a model that is shared, and what gives its whole state."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(5)
    net = nn.Sequential(OrderedDict(norm=nn.LayerNorm(3), body=nn.Linear(3, 6), head=nn.Linear(6, 5)))
    net.register_buffer("scale", torch.ones(2))
    if kind == "fsdp1":
        shared = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))
        return shared, lambda: {name: _gathered(value) for name, value in _state(shared, kind).items()}
    if kind == "fsdp2-tp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(net, mesh["tp"], {"body": ColwiseParallel(), "head": RowwiseParallel()})
        fully_shard(net, mesh=mesh["dp"])
    elif kind == "hsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("ddp", "fsdp")))
    else:
        fully_shard(net, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",)))

    def full() -> Mapping[str, Any]:
        state = net.state_dict()
        return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}

    return net, full


def _gathered(value: Any) -> Any:
    """Return a ShardedTensor whole, at the first process; FSDP itself crashes where it gathers without a GPU."""
    import torch

    if type(value) is torch.Tensor:
        return value
    whole = torch.empty(value.size()) if os.environ["RANK"] == "0" else None
    value.gather(0, whole)
    return whole


def _state(model: Any, kind: str) -> Mapping[str, Any]:
    """Return the state of which each process saves its own part."""
    if kind != "fsdp1":
        return model.state_dict()
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType

    own = ShardedStateDictConfig(offload_to_cpu=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT, own):
        return model.state_dict()


def _save_as_verl(folder: Path, state: Mapping[str, Any], optimizer: Any) -> None:
    """Save one process's files, named as verl's FSDPCheckpointManager names them."""
    import torch

    rank, ranks = os.environ["RANK"], os.environ["WORLD_SIZE"]
    folder.mkdir(parents=True, exist_ok=True)
    end = f"world_size_{ranks}_rank_{rank}.pt"
    torch.save(state, folder / f"model_{end}")
    torch.save(optimizer.state_dict(), folder / f"optim_{end}")
    torch.save({"lr_scheduler": None, "rng": {}}, folder / f"extra_state_{end}")
    if rank == "0":
        (folder / "huggingface").mkdir(exist_ok=True)
        (folder / "huggingface" / "config.json").write_text(json.dumps({"model_type": "none"}))
        (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": int(ranks)}))


def _manager() -> Any:
    """Return torch_checkpointing's manager, which gathers its metadata on graphics cards, made to do without."""
    import torch.distributed as dist
    from torch_checkpointing import CheckpointManager, ItemSpec
    from torch_checkpointing.default_resharder import DefaultResharder
    from torch_checkpointing.metadata_manager import DefaultMetadataManager
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    def gather(_self: Any, data: Any, *_: Any, **__: Any) -> Any:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, data)
        return dict(enumerate(gathered))

    DefaultMetadataManager._all_gather_pickled_data = gather
    config = CheckpointManager.Config.with_sync_save()
    config.items = {"model": ItemSpec(resharder=DefaultResharder())}
    config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
    return config.build()


def main(made: Path, kind: str) -> None:
    """Train, and save the parts of this process."""
    import torch
    from safetensors.torch import save_file

    torch.distributed.init_process_group("gloo")
    model, gather = _model(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    manager = _manager() if kind == "items" else None
    for step in range(1, _STEPS[-1] + 1):
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step not in _STEPS:
            continue
        if manager is not None:
            items = {"model": _state(model, kind), "optimizer": optimizer.state_dict(), "train_state": {"step": step}}
            manager.save(str(made / "steps" / f"step-{step}"), items)
        else:
            _save_as_verl(made / kind / f"global_step_{step}" / "actor", _state(model, kind), optimizer)
        whole = gather()
        if os.environ["RANK"] == "0":
            whole = {name: value.clone().contiguous() for name, value in whole.items()}
            (made / "expected").mkdir(exist_ok=True)
            save_file(whole, made / "expected" / f"{kind}-{step}.safetensors")
    torch.distributed.barrier()
    if manager is not None:
        manager.close()
    torch.distributed.destroy_process_group()


WRITERS: Mapping[str, Callable[[Path], Path]] = {"fsdp": fsdp, "torch_checkpointing": torch_checkpointing}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
