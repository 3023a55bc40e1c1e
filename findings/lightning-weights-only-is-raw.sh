#!/usr/bin/env bash
# Seen with lightning 2.6.6 and torch 2.13.0 on 2026-11-30
#
# With EMAWeightAveraging a checkpoint has the average in state_dict, and the training weights under current_model_state:
# load_from_checkpoint and predictions take the average. With ModelCheckpoint(save_weights_only=True), which leaves the
# optimizer out, state_dict holds the training weights, and the average is nowhere: callbacks are not asked when such a file
# is written. No key, warning or name tells the one from the other. One would expect the file for predictions, of the two, to
# hold what is validated and what the model is after training: the average.
#
# Seen: of a weight that falls by 1 with each of ten steps, averaged with a decay of 0.5, the whole checkpoint's state_dict
# has -9.002 and its current_model_state -10; with save_weights_only=True state_dict has -10, and the model after fit -9.002.
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
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, _):
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def saved(weights_only):
    module, file = Module(), ModelCheckpoint(f"{weights_only}", save_weights_only=weights_only)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[EMAWeightAveraging(decay=0.5), file], logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(10), batch_size=1))
    loaded = torch.load(file.best_model_path, weights_only=True)
    states = (loaded["state_dict"], loaded.get("current_model_state"), module.state_dict())
    return [state and round(state["weight"].item(), 3) for state in states]


found = {weights_only: saved(weights_only) for weights_only in (False, True)}
print(f"lightning {lightning.__version__}: state_dict, current_model_state, model after fit, by save_weights_only: {found}")
sys.exit(0 if found == {False: [-9.002, -10.0, -9.002], True: [-10.0, None, -9.002]} else 1)
PYTHON
venv/bin/python -W ignore train.py 2>stderr || { tail -n 5 stderr; exit 1; }
