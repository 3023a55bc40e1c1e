"""DeepSpeed on the CPU: its engine, what it holds, and how a training of a test goes on from an average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from tests.trainers.ranks import gloo

STEPS = (2, 4)  # at which `train_or_go_on` saves


def compile_nothing() -> None:
    """Keep DeepSpeed from compiling operators, which would share memory between processes, to be faster."""
    import deepspeed

    deepspeed.ops.__compatible_ops__.update(dict.fromkeys(deepspeed.ops.__compatible_ops__, False))


@contextmanager
def deepspeed_on_cpu() -> Iterator[int]:
    """Join the other processes of a training; give the rank of this one."""
    import deepspeed

    compile_nothing()
    with gloo() as rank:
        deepspeed.init_distributed("gloo")
        yield rank


def configuration(stage: int, dtype: str, **more: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a ZeRO stage, and weights in a type; optimizers are torch's own."""
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        **more,
    }


def zero(stage: int) -> dict[str, Any]:
    """Return the part of a configuration by which stage 3 cuts small parameters, too."""
    return {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 4}}


def start(model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """Return DeepSpeed's engine."""
    import deepspeed

    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


def step(engine: Any, batch: torch.Tensor, length: float | None = None) -> None:
    """Take a step of the optimizer, of another length where one is given."""
    if length is not None:
        for group in engine.optimizer.param_groups:
            group["lr"] = length
    engine.backward(engine(batch).float().pow(2).mean())
    engine.step()


def held(model: torch.nn.Module, stage: int) -> dict[str, torch.Tensor]:
    """Return what a model holds, gathered from all processes where each has a part."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def masters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer's float32 weights, by the names of what trains."""
    from deepspeed.utils import safe_get_full_fp32_param

    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return {name: safe_get_full_fp32_param(tensor).float().clone() for name, tensor in trained.items()}


class Check(Protocol):
    """Compares an engine with an exact average, also its buffers where they were loaded."""

    def __call__(self, exact: Mapping[str, torch.Tensor], *, buffers: bool) -> None:
        """Fail where they differ."""


def train_or_go_on(engine: Any, folder: Path, what: str, batch: Callable[[int], torch.Tensor], check: Check) -> None:
    """Train and save, or load an average, compare and go on.

    Args:
        engine: DeepSpeed's engine.
        folder: gets `out/`, or holds `averaged/` and `exact.safetensors`, the exact average.
        what: `train`, or `resume` or `universal`, as the average has the form of a save or is universal.
        batch: makes the batch of a step, by its number.
        check: is called once all is loaded, and after a step of length 0, in which the optimizer puts its own copies of
            the weights into the model. Then one more step must change all of these.
    """
    if what == "train":
        for number in range(1, STEPS[-1] + 1):
            step(engine, batch(number), 0.05)
            if number in STEPS:
                engine.save_checkpoint(str(folder / "out"))
    else:
        exact = load_file(folder / "exact.safetensors")
        loaded, _ = engine.load_checkpoint(str(folder), tag="averaged")
        assert loaded is not None
        check(exact, buffers=what == "resume")  # of the universal format DeepSpeed loads none
        step(engine, batch(STEPS[-1] + 1), 0.0)
        check(exact, buffers=False)
        before = masters(engine.module)
        step(engine, batch(STEPS[-1] + 2), 0.05)
        assert all(not torch.equal(tensor, before[name]) for name, tensor in masters(engine.module).items())
    engine.destroy()
