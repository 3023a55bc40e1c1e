#!/usr/bin/env bash
# Seen with deepspeed 0.19.8, fairseq 0.12.2 and torch 2.13.0 on 2026-11-30
#
# deepspeed.initialize imports fairseq where it is installed, to know its optimizers, and passes over an ImportError
# alone. fairseq 0.12.2, its last release, can be installed with Python 3.11, but not imported: its dataclasses have
# instances as defaults, and that is a ValueError since 3.11. So no training with DeepSpeed begins in an environment
# that holds fairseq for something else, as for its tokenizers or scripts, though it uses nothing of it.
#
# Seen: deepspeed.initialize of one linear layer with torch's Adam works; with fairseq beside it ends in "ValueError:
# mutable default ... CommonConfig ... for field common is not allowed: use default_factory".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 'setuptools<81' wheel
venv/bin/pip install --quiet --disable-pip-version-check deepspeed==0.19.8
cat >train.py <<'PYTHON'
import os
import socket
import sys

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
os.environ |= {"DS_ACCELERATOR": "cpu"}
import deepspeed
import torch

deepspeed.init_distributed("gloo", verbose=False)
model = torch.nn.Linear(2, 2)
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}}
try:
    deepspeed.initialize(model=model, optimizer=torch.optim.Adam(model.parameters()), config=config)
except ValueError as error:
    found = f"ValueError: {error}"
else:
    found = "initialized"
print(f"{sys.argv[1]}: deepspeed {deepspeed.__version__}, Python {sys.version_info[0]}.{sys.version_info[1]}: {found}")
sys.stdout.flush()
os._exit(0 if sys.argv[2] in found else 1)
PYTHON
venv/bin/python train.py "without fairseq" initialized 2>stderr || { cat stderr; exit 1; }
READTHEDOCS=1 venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation fairseq==0.12.2
venv/bin/pip install --quiet --disable-pip-version-check omegaconf==2.4.0
venv/bin/python train.py "with fairseq" "CommonConfig'> for field common is not allowed" 2>stderr || { cat stderr; exit 1; }
