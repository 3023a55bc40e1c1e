#!/usr/bin/env bash
# Seen with speechbrain 1.1.2, OpenNMT-py 3.5.1 and torch 2.13.0 on 2026-11-30
#
# Both average checkpoints name by name, in place, in the dict that torch.load gives for the first one. torch keeps ties over
# saving and loading: two names of one weight are one memory there. So a tied weight, as of an embedding and the output
# layer, is added to twice. Of two checkpoints a and b SpeechBrain's average_checkpoints makes (a + 2b)/2, which is too large
# for equal ones, too; OpenNMT-py's average_models, which keeps a mean, (a + 3b)/4. One would expect the mean, as for all
# weights that are not tied. Nothing but the numbers shows it.
#
# Seen: of weights that are 1 and 3, SpeechBrain makes 2 where they are not tied and 3.5 where they are, OpenNMT-py 2 and
# 2.5. SpeechBrain writes the checkpoints itself; those of OpenNMT-py are made here as its ModelSaver makes them, the
# output layer beside the model under "generator".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 hyperpyyaml==1.2.3 ruamel.yaml==0.18.17 joblib==1.6.0 \
    scipy==1.17.1 soundfile==0.14.0 huggingface_hub==2.4.0 sentencepiece==0.2.3 tqdm==4.70.1
venv/bin/pip install --quiet --disable-pip-version-check --no-deps speechbrain==1.1.2 OpenNMT-py==3.5.1
cat >averages.py <<'PYTHON'
import argparse
import importlib.util
import runpy
import sys
import types
from importlib.metadata import version
from pathlib import Path

import torch

sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # which SpeechBrain imports, and this does not use
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints


class Model(torch.nn.Module):
    def __init__(self, is_tied):
        super().__init__()
        self.embedding = torch.nn.Embedding(3, 2)
        self.output = torch.nn.Linear(2, 3, bias=False)
        if is_tied:
            self.output.weight = self.embedding.weight


def models(is_tied):
    model = Model(is_tied)
    for value in (1.0, 3.0):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, value)
        yield model


def by_speechbrain(is_tied):
    checkpointer = None
    for number, model in enumerate(models(is_tied)):
        checkpointer = checkpointer or Checkpointer(f"speechbrain-{is_tied}", {"model": model})
        checkpointer.save_checkpoint(meta={"number": number})
    newest_last = checkpointer.find_checkpoints(min_key="number", max_num_checkpoints=2)
    average = average_checkpoints(newest_last, "model")
    return average["embedding.weight"].mean().item(), average["output.weight"].mean().item()


def by_opennmt(is_tied):
    files = []
    for number, model in enumerate(models(is_tied)):
        states = {"model": {"embedding.weight": model.state_dict()["embedding.weight"]}, "generator": model.output.state_dict()}
        files.append(f"opennmt-{is_tied}-{number}.pt")
        torch.save({**states, "vocab": {}, "opt": argparse.Namespace(), "optim": None}, files[-1])
    (package,) = importlib.util.find_spec("onmt").submodule_search_locations
    average_models = runpy.run_path(str(Path(package, "bin", "average_models.py")))["average_models"]
    with torch.serialization.safe_globals([argparse.Namespace]):
        average = average_models(files)
    return average["model"]["embedding.weight"].mean().item(), average["generator"]["weight"].mean().item()


speechbrain = {f"tied {is_tied}": by_speechbrain(is_tied) for is_tied in (False, True)}
opennmt = {f"tied {is_tied}": by_opennmt(is_tied) for is_tied in (False, True)}
print(f"mean of 1 and 3: speechbrain {version('speechbrain')} {speechbrain}, OpenNMT-py {version('OpenNMT-py')} {opennmt}")
is_so = speechbrain == {"tied False": (2.0, 2.0), "tied True": (3.5, 3.5)}
sys.exit(0 if is_so and opennmt == {"tied False": (2.0, 2.0), "tied True": (2.5, 2.5)} else 1)
PYTHON
venv/bin/python -W ignore averages.py 2>stderr || { tail -n 5 stderr; exit 1; }
