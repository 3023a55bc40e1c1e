#!/usr/bin/env bash
# Seen with ema-pytorch 0.8.3 and torch 2.13.0 on 2026-11-30
#
# KarrasEMA(sigma_rel=0.1) stands for one profile over a training, whatever its length: weights that rise from 0 to 1 have
# an average of (gamma + 1)/(gamma + 2), which is 0.888. update_every says how many steps lie between two updates, to spare
# work; but each is made with the factor of a single step. So the average is another one, and not nearly: with the
# default, update_every=100, most of it is what the first tenth of the training made. PostHocEMA, with the same default,
# makes such averages, too, and puts them together as if they were the profiles. One would expect the same average, but for
# the steps that it does not see.
#
# Seen: with update_every=1 0.888, with 10 0.442, with the default 0.073; PostHocEMA's profile of 0.1, from 0.05 and 0.28,
# 0.888 with update_every=1, and less than 0.1 with the default.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/pip install --quiet --disable-pip-version-check ema-pytorch==0.8.3 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys
import tempfile
from importlib.metadata import version

import torch
from ema_pytorch import KarrasEMA, PostHocEMA

STEPS = 10_000


def risen(make):
    """Return what is made of a weight that has risen to 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    averages = make(model)
    for step in range(1, STEPS + 1):
        torch.nn.init.constant_(model.weight, step / STEPS)
        averages.update()
    return averages


def single(**options):
    averages = risen(lambda model: KarrasEMA(model, sigma_rel=0.1, **options))
    return round(averages.ema_model.weight.item(), 3)


def afterwards(**options):
    stored = {"checkpoint_every_num_steps": 1000, "checkpoint_folder": tempfile.mkdtemp(dir=".")}
    averages = risen(lambda model: PostHocEMA(model, sigma_rels=(0.05, 0.28), **stored, **options))
    return round(averages.synthesize_ema_model(sigma_rel=0.1).ema_model.weight.item(), 3)


singles = [single(update_every=1), single(update_every=10), single()]
stored = [afterwards(update_every=1), afterwards()]
print(f"ema-pytorch {version('ema-pytorch')}: KarrasEMA every 1, 10 and by default {singles}; "
      f"PostHocEMA every 1 and by default {stored}")  # fmt: skip
sys.exit(0 if singles == [0.888, 0.442, 0.073] and stored[0] == 0.888 and stored[1] < 0.1 else 1)
PYTHON
