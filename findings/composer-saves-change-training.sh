#!/usr/bin/env bash
# Seen with Composer 0.32.1 (mosaicml) and torch 2.13.0 on 2026-11-30
#
# Composer's EMA puts the averages into the model where a checkpoint is saved, and the training weights back before the next
# batch. Where both EMA's update_interval is in epochs and checkpoints are saved by batches, and a save falls on the last
# batch of an epoch, the end of the epoch comes in between: EMA then folds the averages, which are still in the model, into
# the training weights that it had put aside. The training goes on from that mixture. One would expect that a training does
# not depend on when it is saved; with save_interval="1ep" it does not.
#
# Seen: of a weight that rises by 1 with each of 12 batches, 4 an epoch, with EMA(half_life="1ep", update_interval="1ep") the
# training weight is 12 in the end without saves and with save_interval="1ep", 7 with "2ba" and 9 with "3ba". Without EMA it
# is 12 with "2ba", too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
# Composer asks for a torch below 2.7.1 and for a client of its makers' platform, and needs neither for this.
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 torchmetrics==1.9.0 torch_optimizer==0.3.0 coolname==5.0.0 \
    tabulate==0.9.0 py-cpuinfo==9.0.0 requests==2.34.2 psutil==7.2.2 importlib_metadata==10.2.0 pillow==13.0.0 tqdm==4.70.1 \
    pyyaml==6.0.4 packaging==26.4
venv/bin/pip install --quiet --disable-pip-version-check --no-deps mosaicml==0.32.1 torchvision==0.28.0
cat >train.py <<'PYTHON'
import importlib.util
import sys
import types
from importlib.metadata import version
from pathlib import Path

import torch

(vision,) = importlib.util.find_spec("torchvision").submodule_search_locations
try:
    torch.ops.load_library(next(Path(vision).glob("_C*.so")))
except OSError:  # its wheel is for CUDA, and torch is not
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
sys.modules["mcli"] = types.ModuleType("mcli")
from composer import ComposerModel, Trainer
from composer.algorithms import EMA


class Model(ComposerModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return batch * self.weight

    def loss(self, outputs, _):
        return -outputs.mean()


def trained(save_interval, with_ema=True):
    model = Model()
    ema = EMA(half_life="1ep", update_interval="1ep")
    saves = {"save_folder": f"{save_interval}-{with_ema}", "save_interval": save_interval} if save_interval else {}
    Trainer(
        model=model, train_dataloader=torch.utils.data.DataLoader(torch.ones(4), batch_size=1), max_duration="3ep",
        optimizers=torch.optim.SGD(model.parameters(), lr=1.0), algorithms=[ema] if with_ema else [], device="cpu",
        progress_bar=False, **saves,
    ).fit()  # fmt: skip
    if with_ema and ema.ema_weights_active:
        model = ema.get_training_model(model)
    return model.weight.item()


found = {interval: trained(interval) for interval in (None, "1ep", "2ba", "3ba")}
without = trained("2ba", with_ema=False)
print(f"mosaicml {version('mosaicml')}, torch {torch.__version__}: training weight by save_interval {found}, without EMA {without}")
sys.exit(0 if found == {None: 12.0, "1ep": 12.0, "2ba": 7.0, "3ba": 9.0} and without == 12 else 1)
PYTHON
venv/bin/python -W ignore train.py 2>stderr || { tail -n 5 stderr; exit 1; }
