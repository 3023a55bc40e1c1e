"""Load an average with DeepSpeed, as its trainings do, and train on from it.

`python -m tests.trainers.load_deepspeed FOLDER STAGE DTYPE`, in each process of the training. FOLDER holds the average,
`averaged/`, and `exact.safetensors`, which the model must hold then: also after a step of length 0, in which the
optimizer puts its own copies of the weights into the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.trainers.deepspeed_engine import deepspeed_on_cpu, step
from tests.trainers.ranks import leave
from tests.trainers.write_deepspeed import BATCH, make_engine


def check(model: torch.nn.Module, folder: Path) -> None:
    """Compare the model's weights with the exact ones, rounded once."""
    state = model.state_dict()
    for name, exact in load_file(folder / "exact.safetensors").items():
        torch.testing.assert_close(state[name], exact.to(state[name].dtype), rtol=1e-2, atol=1e-6)


def main(folder: Path, stage: int, dtype: str) -> None:
    """Load, compare, train."""
    with deepspeed_on_cpu():
        engine = make_engine(stage, dtype, 0.0)
        model = engine.module
        loaded, _ = engine.load_checkpoint(str(folder), tag="averaged", load_module_only=True)
        assert loaded is not None
        check(model, folder)
        batch = torch.ones(BATCH, 5, dtype=getattr(torch, dtype))
        step(engine, batch, 0.0)
        model.seen -= 1
        check(model, folder)
        step(engine, batch, 0.5)
        assert any(
            not torch.equal(model.state_dict()[name].float(), exact.float())
            for name, exact in load_file(folder / "exact.safetensors").items()
            if exact.is_floating_point()
        )
        engine.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    leave()
