#!/usr/bin/env bash
# Seen with torch 2.13.0 on 2026-11-30
#
# HuggingFaceStorageWriter(path, save_distributed=True, enable_consolidation=True) puts the pieces of all ranks together into
# whole files. A tensor without dimensions, as the logit_scale of CLIP or a learnt temperature, is in the pieces as it is,
# and in the whole file it is 0.0: its place is there, and no number is put into it. There is no error and no warning, and
# the model loads. One would expect its number, as from the pieces, or from the same writer with save_distributed=False.
#
# Seen: 2.6592 in the pieces and without save_distributed, 0.0 in the file that was put together; a tensor of one dimension
# with one number is right in all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python -W ignore - <<'PYTHON'
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

model = {"logit_scale": torch.tensor(2.6592), "bias": torch.tensor([2.6592]), "weight": torch.ones(2, 2)}
whole = dcp.HuggingFaceStorageWriter("whole", save_distributed=False)
dcp.save(model, storage_writer=whole, no_dist=True)
joined = dcp.HuggingFaceStorageWriter("joined", save_distributed=True, enable_consolidation=True)
dcp.save(model, storage_writer=joined, no_dist=True)
found = {}
for place in ("whole", "joined/sharded", "joined"):
    (file,) = Path(place).glob("*.safetensors")
    loaded = load_file(file)
    found[place] = [round(loaded[name].item(), 4) for name in ("logit_scale", "bias")]
print(f"torch {torch.__version__}: logit_scale and bias, saved as 2.6592: {found}")
wanted = {"whole": [2.6592, 2.6592], "joined/sharded": [2.6592, 2.6592], "joined": [0.0, 2.6592]}
sys.exit(0 if found == wanted else 1)
PYTHON
