#!/usr/bin/env bash
# Seen with torch 2.13.0 on 2026-11-29
#
# torch.optim.swa_utils.update_bn (torch 2.13.0) resets the running statistics of all BatchNorm layers and sets their
# momentum to None before the first batch. Where a batch fails - a loader that raises, out of memory, Ctrl-C - it does
# not put the momentum back: the model stays usable, without a word, but its BatchNorm layers hold the statistics of the
# batches so far, and from then on weigh all batches of a training alike instead of by the momentum they were made with.
# One would expect either the statistics from before, or at least the layer's own momentum, after an exception.
#
# Seen: momentum None after the exception, where the layer was made with 0.1; running_mean that of the first batch alone;
# num_batches_tracked 1, where it was 5 before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

model = nn.Sequential(nn.BatchNorm1d(2))
layer = model[0]
for _ in range(5):
    model(torch.randn(8, 2))
before = (layer.momentum, layer.num_batches_tracked.item())


def batches():
    yield torch.full((4, 2), 3.0) + torch.randn(4, 2) * 0
    raise OSError("the disk went away")


try:
    update_bn(batches(), model)
except OSError:
    pass
after = (layer.momentum, layer.num_batches_tracked.item(), layer.running_mean.tolist())
print(f"torch {torch.__version__}: momentum and batches before {before}, after the exception {after}")
sys.exit(0 if before == (0.1, 5) and after == (None, 1, [3.0, 3.0]) else 1)
PYTHON
