#!/usr/bin/env bash
# Seen with megatron-core 0.16.1 and torch 2.13.0 on 2026-11-30
#
# Without Apex and Transformer Engine Megatron-Core takes torch's own Adam, and says so. Its distributed optimizer saves
# that one's state with distrib_optim_sharding_type fully_reshardable, and cannot load what it saved: what is loaded has no
# 'step' for each parameter, as torch's Adam keeps it, and load_state_dict asks for one. One would expect that a training
# goes on from its own checkpoint, or an error when it is saved. The model alone can be loaded.
#
# No GPU is needed: one process on the CPU, which Megatron gets wherever it asks for CUDA. It wants psutil, too, which it
# does not ask for.
#
# Seen: KeyError, 'step', from load_state_dict of the optimizer, right after the save.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 megatron-core==0.16.1 psutil==7.2.2 numpy==2.4.6
cat >resume.py <<'PYTHON'
import contextlib
import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """Gives Megatron the CPU where it asks for CUDA."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = "cpu"
        result = function(*args, **kwargs)
        return result.replace("torch.", "torch.cuda.") if function is torch.Tensor.type and len(args) == 1 else result


from megatron.core import __version__, dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.transformer_config import TransformerConfig

METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
half = torch.bfloat16


def main():
    """Train one step, save, load."""
    CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor

    def state(loading):
        saved = {"model": model.module.sharded_state_dict(metadata=METADATA)}
        saved["optimizer"] = optimizer.sharded_state_dict(saved["model"], is_loading=loading, metadata=METADATA)
        return saved

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with OnCpu():
        parallel_state.initialize_model_parallel(1)
        config = TransformerConfig(
            num_layers=1, hidden_size=8, num_attention_heads=2, use_cpu_initialization=True, bf16=True, params_dtype=half,
            gradient_accumulation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False,
        )
        layers = get_gpt_layer_local_spec(normalization="LayerNorm")
        gpt = GPTModel(config, layers, vocab_size=16, max_sequence_length=8).bfloat16()
        cutting = DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=False)
        model = DistributedDataParallel(config, cutting, gpt)
        options = OptimizerConfig(
            optimizer="adam", lr=0.01, bf16=True, params_dtype=half, use_distributed_optimizer=True
        )
        optimizer = get_megatron_optimizer(options, [model])
        tokens = torch.randint(0, 16, (2, 8))
        model(tokens, torch.arange(8).expand(2, 8), None, labels=tokens).float().mean().backward()
        model.finish_grad_sync()
        optimizer.step()
        path = Path("saved")
        path.mkdir()
        dist_checkpointing.save(state(False), str(path))
        loaded = dist_checkpointing.load(state(True), str(path))
        error = None
        try:
            optimizer.load_state_dict(loaded["optimizer"])
        except KeyError as raised:
            error = raised
    print(f"megatron-core {__version__}, torch {torch.__version__}: load_state_dict raised {error!r}")
    sys.exit(0 if error is not None and error.args == ("step",) else 1)


if __name__ == "__main__":
    main()
PYTHON
venv/bin/python -W ignore resume.py 2>log || { tail -n 5 log; exit 1; }
