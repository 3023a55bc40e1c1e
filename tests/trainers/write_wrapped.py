"""Save a model as torch's wrappers name its tensors.

`python -m tests.trainers.write_wrapped FOLDER`, in each process of the training. For each way of wrapping it writes
`out/`, and `truth/` with the model's own names.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn.parallel import DistributedDataParallel

from tests.trainers.ranks import gloo, leave

STEPS = [10, 20, 30]


def make_model() -> nn.Module:
    """Return a small model, one part of which has the name that DDP gives to the whole."""
    return nn.Sequential(OrderedDict(module=nn.Linear(5, 7), norm=nn.BatchNorm1d(7), head=nn.Linear(7, 3)))


def checkpointed(model: nn.Module) -> nn.Module:
    """Return the model in DDP, its linear layers with activation checkpointing, which names them otherwise."""
    apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, nn.Linear))
    return DistributedDataParallel(model)


def compiled(model: nn.Module) -> nn.Module:
    """Return the model compiled; it is, once it is called."""
    out: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return out


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "ddp-of-compiled": lambda model: DistributedDataParallel(compiled(model)),
    "compiled-ddp": lambda model: compiled(DistributedDataParallel(model)),
    "checkpointed": checkpointed,
}


def main(folder: Path) -> None:
    """Train for 30 steps for each wrapper, saving every tenth; names are what matters, so the bare model is trained."""
    with gloo():
        for kind, wrap in KINDS.items():
            torch.manual_seed(10)
            bare = make_model()
            own_names = list(bare.state_dict())
            model = wrap(bare)
            optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
            for part in ("out", "truth"):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
            for step in range(1, STEPS[-1] + 1):
                bare(torch.randn(8, 5)).pow(2).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if step in STEPS:
                    held = bare.state_dict().values()
                    truth = {name: each.detach().clone() for name, each in zip(own_names, held, strict=True)}
                    save_file(truth, folder / kind / "truth" / f"{step}.safetensors")
                    torch.save({"model": model.state_dict(), "step": step}, folder / kind / "out" / f"step_{step}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
