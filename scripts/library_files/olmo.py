"""OLMo's local sharded checkpoints, which its own code saves and puts together again.

`python -m library_files.olmo FOLDER` is one process of a training; torch's environment variables say which.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from library_files.folders import fresh
from library_files.processes import launch

_STEPS = (10, 20)
_RANKS = 3


def olmo(folder: Path) -> Path:
    """Train with FSDP, and save as OLMo does; `expected/` has what its unsharding gives."""
    import torch
    from safetensors.torch import save_file

    made = fresh(folder, "ai2-olmo", "olmo")
    launch("library_files.olmo", _RANKS, str(made))
    torch.load = partial(torch.load, weights_only=False)  # as it was when OLMo was written
    (made / "expected").mkdir()
    for step in _STEPS:
        whole, _, _ = _checkpointer().unshard_checkpoint(made / "run" / f"step{step}", load_optimizer_state=False)
        save_file(
            {name: value.contiguous() for name, value in whole.items()}, made / "expected" / f"{step}.safetensors"
        )
        for inner in ("optim", "train"):
            for path in (made / "run" / f"step{step}" / inner).iterdir():
                if path.parent.name == "optim" or path.name != "rank0.pt":
                    path.unlink()
        (made / "run" / f"step{step}" / "optim").rmdir()
    return made


def _checkpointer() -> Any:
    """Return OLMo's checkpointer, which knows FSDP of torch before 2.3 alone; newer ones keep the same in one place."""
    from olmo.checkpoint import LocalShardedCheckpointer
    from olmo.config import TrainConfig

    class Checkpointer(LocalShardedCheckpointer):
        def _fsdp_handles(self, fsdp_model: Any) -> list[Any]:
            return [fsdp_model._handle] if fsdp_model._handle is not None else []

    return Checkpointer(TrainConfig(run_name="small"), thread_count=1)


def main(made: Path) -> None:
    """Train, and save the parts of this process."""
    import torch
    from torch import nn
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    torch.distributed.init_process_group("gloo")
    torch.manual_seed(5)
    layers = [(f"body{number}", nn.Linear(3, 3)) for number in range(2)]
    net = nn.Sequential(OrderedDict([("norm", nn.LayerNorm(3)), *layers, ("head", nn.Linear(3, 5, bias=False))]))
    policy = ModuleWrapPolicy({nn.Linear})
    model = FullyShardedDataParallel(net, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(1, _STEPS[-1] + 1):
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in _STEPS:
            state = {
                "epoch": 0, "global_step": step, "global_train_examples_seen_this_epoch": 12 * step,
                "global_train_tokens_seen": 36 * step, "world_size": _RANKS, "checkpoints": [Path("step10")],
                "rng": {"torch": torch.random.get_rng_state()[:8].clone()},
            }  # fmt: skip
            _checkpointer().save_checkpoint(made / "run" / f"step{step}", model, optimizer, state)
    torch.distributed.destroy_process_group()


WRITERS: Mapping[str, Callable[[Path], Path]] = {"olmo": olmo}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
