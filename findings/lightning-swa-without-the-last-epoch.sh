#!/usr/bin/env bash
# Seen with lightning 2.6.6 and torch 2.13.0 on 2026-11-30
#
# StochasticWeightAveraging takes the weights at the beginning of each of its epochs, and not at the end, as the recipe of
# torch.optim.swa_utils does. What the last epoch trained is therefore in no average, and the first weights in it are those
# from before any of its epochs, which its learning rate has not touched. And swa_epoch_start counts epochs from 1, as a
# fraction, too: 0.5 of four is the second epoch.
#
# Seen: of a weight that falls by 10 in each of four epochs swa_epoch_start=0.5 makes -20, the mean of -10, -20 and -30.
# One would expect -35, the mean of what the last two epochs trained, -30 and -40, or -30, that of the last three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/pip install --quiet --disable-pip-version-check lightning==2.6.6 numpy==2.4.6
cat >train.py <<'PYTHON'
import sys

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

ends = []


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, _):
        return self.weight * 1.0

    def on_train_epoch_end(self):
        ends.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


module = Module()
averaging = StochasticWeightAveraging(swa_lrs=1.0, swa_epoch_start=0.5)
trainer = Trainer(
    max_epochs=4, accelerator="cpu", callbacks=[averaging], logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, torch.utils.data.DataLoader(torch.ones(10), batch_size=1))
print(f"lightning {lightning.__version__}: after each epoch {ends}, averaged {module.weight.item()}")
sys.exit(0 if ends == [-10.0, -20.0, -30.0, -40.0] and abs(module.weight.item() + 20) < 1e-4 else 1)
PYTHON
venv/bin/python -W ignore train.py 2>stderr || { tail -n 5 stderr; exit 1; }
