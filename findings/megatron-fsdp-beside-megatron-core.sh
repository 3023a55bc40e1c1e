#!/usr/bin/env bash
# Seen with megatron-fsdp 0.6.1, megatron-core 0.16.1 and torch 2.13.0 on 2026-11-30
#
# megatron-fsdp is a package of its own, which needs no Megatron-Core. Where that is installed, it takes the class of its
# settings from there in place of its own, asks for no version, and sets more of them than megatron-core 0.16.1 knows:
# fully_shard ends in a TypeError before anything is sharded. Both are the newest releases that an index has, and
# pip installs them side by side without a word.
#
# Seen: without megatron-core a linear layer is sharded, and has a training step, on the CPU (what asks for CUDA is
# given and does nothing); with it, "DistributedDataParallelConfig.__init__() got an unexpected keyword argument
# 'fsdp_db_use_persist_buf_on_alloc_fail'".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/pip install --quiet --disable-pip-version-check numpy megatron-fsdp==0.6.1
cat >shard.py <<'PYTHON'
import contextlib
import importlib.metadata
import os
import sys
import tempfile

import torch

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


class Nothing:
    def __init__(self, *_, **__):
        pass

    def __getattr__(self, _):
        return Nothing


torch.cuda.Stream = torch.cuda.Event = torch.cuda.current_stream = Nothing
torch.cuda.stream = lambda *_: contextlib.nullcontext()
for name in ("current_device", "synchronize", "empty_cache", "memory_allocated", "memory_reserved"):
    setattr(torch.cuda, name, lambda *_: 0)
torch.Tensor.cuda = lambda tensor, *_, **__: tensor
torch.distributed._make_nccl_premul_sum = lambda _: torch.distributed.ReduceOp.SUM

from megatron_fsdp import fully_shard

torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(tempfile.mktemp(), 1), rank=0, world_size=1)
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
net = torch.nn.Sequential(torch.nn.Linear(3, 2))
try:
    model, optimizer = fully_shard(
        module=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), fsdp_unit_modules=[torch.nn.Linear], device_mesh=mesh,
        dp_shard_dim="dp", tp_dim="tp", zero_dp_strategy=3, device=torch.device("cpu"),
    )  # fmt: skip
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = "sharded and trained"
except TypeError as error:
    found = f"TypeError: {error}"
versions = [f"{each.name} {each.version}" for each in importlib.metadata.distributions() if each.name.startswith("megatron")]
print(f"{', '.join(sorted(versions))}: {found}", flush=True)
os._exit(0 if sys.argv[1] in found else 1)
PYTHON
venv/bin/python shard.py "sharded and trained" 2>stderr || { cat stderr; exit 1; }
venv/bin/pip install --quiet --disable-pip-version-check megatron-core==0.16.1
venv/bin/python shard.py "unexpected keyword argument 'fsdp_db_use_persist_buf_on_alloc_fail'" 2>stderr || { cat stderr; exit 1; }
