"""DeepSpeed's ZeRO stages: trained on the CPU by two or three processes, and what its own scripts make of the files.

`python -m library_files.zero FOLDER` is one process of a training; torch's environment variables say which.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library_files.folders import fresh
from library_files.processes import launch

_STEPS = (2, 4)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A training: its ZeRO stage, its dtype, and the number of its processes."""

    stage: int
    dtype: str
    ranks: int

    @property
    def folder(self) -> str:
        return f"zero{self.stage}-{self.dtype}-{self.ranks}"


_KINDS = (
    _Kind(1, "bfloat16", 2),
    _Kind(2, "bfloat16", 3),
    _Kind(3, "bfloat16", 2),
    _Kind(3, "float32", 3),
)  # fmt: skip


def deepspeed(folder: Path) -> Path:
    """Train at each stage, and convert: zero_to_fp32.py gives what is in `expected/`, ds_to_universal `universal/`."""
    made = fresh(folder, "deepspeed")
    for kind in _KINDS:
        launch("library_files.zero", kind.ranks, str(made), str(_KINDS.index(kind)))
        out = made / kind.folder
        for script in out.glob("zero_to_*.py"):
            script.unlink()
        for step in _STEPS:
            _keep_expected(out, step, made / "expected" / f"{kind.folder}-{step}.safetensors")
            if kind.ranks == 2:
                _convert_to_universal(out / f"global_step{step}", made / "universal" / kind.folder, step)
    return made


def _keep_expected(out: Path, step: int, path: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    state = get_fp32_state_dict_from_zero_checkpoint(str(out), f"global_step{step}")
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)


def _convert_to_universal(source: Path, target: Path, step: int) -> None:
    """Convert by DeepSpeed's script, and leave out the states of the optimizer."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1",
         "--num_merge_workers", "1", "--inject_missing_state",
         "--input_folder", str(source), "--output_folder", str(target / f"global_step{step}")],
        check=True, capture_output=True, env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    for state in (*target.rglob("exp_avg*.pt"), *target.rglob("step.pt")):
        state.unlink()


def _model() -> Any:
    """Return a network with a part that does not train, a tied weight, and buffers, of sizes that need padding."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.frozen = nn.Linear(3, 3)
            self.body = nn.Sequential(nn.Linear(3, 7), nn.LayerNorm(7), nn.Linear(7, 3))
            self.scale = nn.Parameter(torch.ones(1))
            self.head = nn.Linear(3, 5)
            self.head.weight = self.embed.weight
            self.register_buffer("seen", torch.tensor(1 << 24))
            self.register_buffer("mean", torch.zeros(3))
            self.frozen.requires_grad_(False)

        def forward(self, batch: Any) -> Any:
            self.seen += 1
            values = self.frozen(self.embed(batch))
            self.mean.mul_(0.9).add_(0.1 * values.detach().mean(0))
            return self.head(self.body(values) * self.scale)

    return Net()


def _train(made: Path, kind: _Kind) -> None:
    import deepspeed
    import torch

    # It would compile an operator that shares memory between processes, to be faster.
    deepspeed.ops.__compatible_ops__.update(dict.fromkeys(deepspeed.ops.__compatible_ops__, False))
    deepspeed.init_distributed("gloo")
    torch.manual_seed(3)
    model = _model()
    plain = [name for name, tensor in model.named_parameters() if tensor.ndim < 2 and tensor.requires_grad]
    named = dict(model.named_parameters())
    groups = [
        {"params": [tensor for name, tensor in named.items() if name not in plain and tensor.requires_grad]},
        {"params": [named[name] for name in plain], "weight_decay": 0.0},
    ]
    config = {
        "train_batch_size": 2 * kind.ranks,
        "zero_optimization": {"stage": kind.stage, "stage3_param_persistence_threshold": 4},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": kind.dtype == "bfloat16"},
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(groups, lr=0.01), config=config, dist_init_required=False
    )
    for step in range(1, _STEPS[-1] + 1):
        engine.backward(engine(torch.randint(5, (2,))).float().pow(2).mean())
        engine.step()
        if step in _STEPS:
            engine.save_checkpoint(str(made / kind.folder))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


WRITERS: Mapping[str, Callable[[Path], Path]] = {"deepspeed": deepspeed}

if __name__ == "__main__":
    _train(Path(sys.argv[1]), _KINDS[int(sys.argv[2])])
