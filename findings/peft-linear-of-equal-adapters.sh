#!/usr/bin/env bash
# Seen with peft 0.21.2 and torch 2.13.0 on 2026-11-30
#
# add_weighted_adapter(combination_type="linear") adds the A of all adapters, and the B of all, each times the square
# root of its weight, and leaves the sums to be multiplied: the weights of the product are those of a square. Weights
# that sum to 1, as of an average, so give a change of the model that is too large: of two adapters that are equal, with
# 1/2 each, twice theirs, and of four with 1/4 each four times theirs. One would expect the adapter itself, as from "cat"
# and "svd". Checkpoints of one training are nearly equal: their average is a multiple of what was trained.
#
# Seen: of n equal adapters with weights 1/n the change of "linear" is n times, of "cat" and "svd" once that of each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 peft==0.21.2 transformers==5.23.0
venv/bin/python -W ignore - <<'PYTHON'
import sys

import peft
import torch

config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"], init_lora_weights=False)
model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False)), config, adapter_name="0")
layer = model.base_model.model[0]
for name in "123":
    model.add_adapter(name, config)
    for side in (layer.lora_A, layer.lora_B):
        side[name].load_state_dict(side["0"].state_dict())
one = layer.get_delta_weight("0")
found = {}
for count in (2, 4):
    for kind in ("linear", "cat", "svd"):
        model.add_weighted_adapter(list("0123"[:count]), [1 / count] * count, f"{kind}{count}", combination_type=kind)
        ratio = (layer.get_delta_weight(f"{kind}{count}") * one).sum() / one.square().sum()
        found[kind, count] = round(ratio.item(), 3)
print(f"peft {peft.__version__}: times the change of one: {found}")
sys.exit(0 if all(ratio == (count if kind == "linear" else 1) for (kind, count), ratio in found.items()) else 1)
PYTHON
