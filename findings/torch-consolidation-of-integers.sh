#!/usr/bin/env bash
# Seen with torch 2.13.0 on 2026-11-30
#
# HuggingFaceStorageWriter(path, save_distributed=True, enable_consolidation=True) saves what each rank has in sharded/,
# and puts it together in path. Where the model has a tensor of whole numbers (num_batches_tracked of a BatchNorm, any
# counter), the second half fails: consolidate_safetensors_files asks torch.finfo for the size of every dtype. One would
# expect the whole model, as without such a tensor; the pieces in sharded/ are complete, and torch's own reader loads
# them.
#
# Seen: TypeError, "torch.finfo() requires a floating point input type"; no file in path; all tensors from sharded/.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy
venv/bin/python -W ignore - <<'PYTHON'
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp


def save(path, model):
    writer = dcp.HuggingFaceStorageWriter(path, save_distributed=True, enable_consolidation=True)
    try:
        dcp.save(model.state_dict(), storage_writer=writer, no_dist=True)
    except BaseException as error:
        print(f"{path}: {str(error).strip().splitlines()[-1]}")
        return False
    print(f"{path}: put together")
    return bool(list(Path(path).glob("*.safetensors")))


plain = save("plain", torch.nn.Linear(2, 2))
normed = save("normed", torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
loaded = {name: torch.zeros_like(tensor) for name, tensor in torch.nn.BatchNorm1d(2).state_dict(prefix="1.").items()}
dcp.load(loaded, storage_reader=dcp.HuggingFaceStorageReader("normed/sharded"), no_dist=True)
print(f"torch {torch.__version__}; from the pieces: {', '.join(loaded)}")
sys.exit(0 if plain and not normed and loaded["1.weight"].eq(1).all() else 1)
PYTHON
