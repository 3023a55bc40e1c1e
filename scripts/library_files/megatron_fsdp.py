"""Megatron-FSDP: two processes save `fsdp_dtensor`, a folder of torch.distributed.checkpoint, as Megatron does.

`python -m library_files.megatron_fsdp FOLDER` is one process of a training. Megatron-FSDP asks for CUDA by its name;
what it asks for is given, and does nothing, for on the CPU nothing has to be waited for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from library_files.folders import fresh
from library_files.processes import launch

_STEPS = (10, 20)


def megatron_fsdp(folder: Path) -> Path:
    """Train with Megatron-FSDP, and save; `expected/` has what torch loads."""
    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    made = fresh(folder, "megatron-fsdp")
    launch("library_files.megatron_fsdp", 2, str(made))
    (made / "expected").mkdir()
    for step in _STEPS:
        loaded: dict[str, Any] = {}
        reader = torch.distributed.checkpoint.FileSystemReader(made / "run" / f"iter_{step:07}")
        _load_state_dict(loaded, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
        model = {name.removeprefix("module."): value for name, value in loaded["model"].items()}
        save_file(model, made / "expected" / f"{step:07}.safetensors")
    return made


class _Nothing:
    """A stream, or an event in one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, _name: str) -> Callable[..., _Nothing]:
        return _Nothing


def _without_cuda() -> None:
    import torch

    torch.cuda.Stream = torch.cuda.Event = torch.cuda.current_stream = _Nothing
    torch.cuda.stream = lambda *_: contextlib.nullcontext()
    for name in ("current_device", "synchronize", "empty_cache", "memory_allocated", "memory_reserved"):
        setattr(torch.cuda, name, lambda *_: 0)
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    torch.distributed._make_nccl_premul_sum = lambda _factor: torch.distributed.ReduceOp.SUM  # gloo has no other


def main(made: Path) -> None:
    """Train, and save the parts of this process."""
    import torch
    from torch import nn

    _without_cuda()
    # Beside Megatron-Core it takes that one's settings, which 0.16.1 has fewer of than 0.6.1 sets: it has its own.
    sys.modules["megatron"] = None  # type: ignore[assignment]
    from megatron_fsdp import fully_shard

    torch.manual_seed(5)
    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "tp"))
    net = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 5))
    model, optimizer = fully_shard(
        module=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), fsdp_unit_modules=[nn.Linear], device_mesh=mesh,
        dp_shard_dim="dp", tp_dim="tp", zero_dp_strategy=3, device=torch.device("cpu"),
    )  # fmt: skip
    for step in range(1, _STEPS[-1] + 1):
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in _STEPS:
            state = {"model": model.state_dict(), "iteration": step, "checkpoint_version": 3.0}
            torch.distributed.checkpoint.save(state, checkpoint_id=made / "run" / f"iter_{step:07}")
    torch.distributed.destroy_process_group()


WRITERS: Mapping[str, Callable[[Path], Path]] = {"megatron-fsdp": megatron_fsdp}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
