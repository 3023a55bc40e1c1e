"""Megatron-Core: two tensor parallel processes on the CPU save `torch_dist`, and go on from the average.

`... megatron KIND` names how the optimizer's state is stored: `fully_reshardable`, `dp_reshardable`, or `plain` for an
optimizer that is not distributed. Where the average is without an optimizer's state, the model alone is loaded, and
the optimizer makes its float32 weights anew.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tests.libraries.resume.shared import assert_held, assert_trained, copied, mean
from tests.trainers.ranks import gloo, launch, leave

STEPS = (2, 4)
METADATA = {"chained_optim_avoid_prefix": True}


class OnCpu(TorchFunctionMode):
    """Megatron-Core asks for CUDA in so many words; here it gets the CPU, whose tensors say that they are on CUDA."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch's."""
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = "cpu"
        result = function(*args, **kwargs)
        if function is torch.Tensor.type and len(args) == 1:
            return result.replace("torch.", "torch.cuda.")
        return result


class Training:
    """A GPT of two layers in bfloat16, and its optimizer."""

    def __init__(self, kind: str) -> None:
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
        from megatron.core.transformer.transformer_config import TransformerConfig

        config = TransformerConfig(
            num_layers=2, hidden_size=8, num_attention_heads=2, use_cpu_initialization=True, bf16=True,
            params_dtype=torch.bfloat16, hidden_dropout=0.0, attention_dropout=0.0, gradient_accumulation_fusion=False,
            bias_dropout_fusion=False, masked_softmax_fusion=False,
        )  # fmt: skip
        layers = get_gpt_layer_local_spec(normalization="LayerNorm")
        model = GPTModel(config, layers, vocab_size=16, max_sequence_length=8).bfloat16()
        is_cut = kind != "plain"
        cutting = DistributedDataParallelConfig(use_distributed_optimizer=is_cut, overlap_grad_reduce=False)
        self.model = DistributedDataParallel(config, cutting, model)
        options = OptimizerConfig(
            optimizer="adam", lr=0.01, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=is_cut
        )
        self.optimizer = get_megatron_optimizer(options, [self.model])
        self.metadata = METADATA | {"distrib_optim_sharding_type": kind}

    def step(self) -> None:
        """Train on noise."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        tokens = torch.randint(0, 16, (2, 8))
        self.model(tokens, torch.arange(8).expand(2, 8), None, labels=tokens).float().mean().backward()
        self.model.finish_grad_sync()
        self.optimizer.step()

    def state(self, *, loading: bool = False, optimizer: bool = True) -> dict[str, Any]:
        """Return all that is saved."""
        state: dict[str, Any] = {"model": self.model.module.sharded_state_dict(metadata=self.metadata), "iteration": 0}
        if optimizer:
            state["optimizer"] = self.optimizer.sharded_state_dict(
                state["model"], is_loading=loading, metadata=self.metadata
            )
        return state

    def save(self, folder: Path, step: int) -> None:
        """Save as Megatron does, and beside it what each process holds in float32."""
        from megatron.core import dist_checkpointing

        path = folder / "run" / f"iter_{step:07}"
        path.mkdir(parents=True, exist_ok=True)
        torch.distributed.barrier()
        dist_checkpointing.save(self.state() | {"iteration": step}, str(path))
        torch.save(self.masters(), folder / f"held-{step}-{torch.distributed.get_rank()}.pt")

    def load(self, path: Path, *, optimizer: bool) -> None:
        """Load as Megatron does; without an optimizer's state its float32 weights are made of the model's."""
        from megatron.core import dist_checkpointing

        state = dist_checkpointing.load(self.state(loading=True, optimizer=optimizer), str(path))
        assert state["iteration"] == STEPS[-1]
        self.model.module.load_state_dict(state["model"], strict=False)
        if optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            self.optimizer.reload_model_params()

    def weights(self) -> dict[str, torch.Tensor]:
        """Return this process's part of the model."""
        return copied(dict(self.model.module.named_parameters()))

    def masters(self) -> dict[str, torch.Tensor]:
        """Return this process's part of the float32 weights, by the names of the model's."""
        if not hasattr(self.optimizer, "chained_optimizers"):
            optimizers = [self.optimizer]
        else:
            optimizers = self.optimizer.chained_optimizers
        names = {parameter: name for name, parameter in self.model.module.named_parameters()}
        found = {}
        for optimizer in optimizers:
            groups = (
                [optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups]
                if hasattr(optimizer, "shard_fp32_from_float16_groups")
                else [optimizer.float16_groups, optimizer.fp32_from_float16_groups]
            )
            for parameters, masters in zip(*groups, strict=True):
                for parameter, master in zip(parameters, masters, strict=True):
                    if master is not None and master.numel() == parameter.numel():
                        found[names[parameter]] = master.detach().clone().reshape(parameter.shape)
        assert found.keys() == set(names.values())
        return found


def take_torch_s_adam() -> None:
    """Let Megatron-Core load a state of torch's Adam, which it uses where Apex is missing: it forgets the step."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    put = DistributedOptimizer._set_main_param_and_optimizer_states

    def put_with_step(self: Any, parameter: Any, tensors: Any) -> None:
        group, order = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        put(self, parameter, {"step": state["step"], **tensors})

    DistributedOptimizer._set_main_param_and_optimizer_states = put_with_step


def rank(what: str, folder: Path, kind: str) -> None:
    """Do what one process does."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[assignment, misc]
    take_torch_s_adam()
    with gloo() as number, OnCpu():
        parallel_state.initialize_model_parallel(2)
        torch.manual_seed(0)
        training = Training(kind)
        if what == "train":
            for step in range(1, STEPS[-1] + 1):
                training.step()
                if step in STEPS:
                    training.save(folder, step)
            return
        exact = mean([torch.load(folder / f"held-{step}-{number}.pt") for step in STEPS])
        has_optimizer = kind != "dp_reshardable"
        training.step()  # away from where both began
        training.load(folder / "averaged", optimizer=has_optimizer)
        assert_held(training.weights(), {name: tensor.bfloat16() for name, tensor in exact.items()}, 2**-7)
        masters = training.masters()
        assert_held(masters, exact, 1e-6 if has_optimizer else 2**-7)
        for name, tensor in training.weights().items():
            assert torch.equal(tensor, masters[name].bfloat16()), name
        training.step()
        assert_trained(training.masters(), masters)


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(sys.argv[2], Path(sys.argv[1]), sys.argv[3])
        leave()
    else:
        launch("megatron", Path(sys.argv[2]).absolute(), sys.argv[1], sys.argv[3], package="tests.libraries.resume")
