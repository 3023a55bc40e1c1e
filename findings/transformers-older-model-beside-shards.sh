#!/usr/bin/env bash
# Seen with transformers 5.23.0, diffusers 0.42.1 and torch 2.13.0 on 2026-11-30
#
# save_pretrained into a folder that holds a model already removes the shards that are no longer in use, but not the one
# file model.safetensors of a save before; and from_pretrained looks for that file first. So who saves a model again in
# smaller shards (max_shard_size), as before an upload, loads the older weights, without a word: the new ones lie beside
# them, with their index. One would expect what was saved last, as with one file over shards.
#
# diffusers has the same names, and asks for the index first: it loads the new model. But one file over shards, which
# is right in transformers, it cannot load: it removed the shards and left their index.
#
# Seen: of weights that were 1 in the first save and 2 in the second, transformers loads 1 where shards came after one
# file, and 2 the other way round; diffusers loads 2, and the other way round ends in a FileNotFoundError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 transformers==5.23.0 diffusers==0.42.1
cat >saved.py <<'PYTHON'
import sys
import tempfile
from importlib.metadata import version

import torch
from diffusers import UNet2DModel
from transformers import GPT2Config, GPT2LMHeadModel

ONE, SHARDS = "1GB", "20KB"
gpt = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=16, n_embd=16, n_layer=2, n_head=2))
unet = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32,),
    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
)  # fmt: skip


def loaded(model, name, sizes):
    folder = tempfile.mkdtemp(dir=".")
    for value, size in zip((1.0, 2.0), sizes, strict=True):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, value)
        model.save_pretrained(folder, max_shard_size=size)
    try:
        return type(model).from_pretrained(folder).get_parameter(name).flatten()[0].item()
    except FileNotFoundError as error:
        return type(error).__name__


gpts = [loaded(gpt, "transformer.wte.weight", sizes) for sizes in ((ONE, SHARDS), (SHARDS, ONE))]
unets = [loaded(unet, "conv_in.weight", sizes) for sizes in ((ONE, SHARDS), (SHARDS, ONE))]
print(f"shards over one file, one file over shards: transformers {version('transformers')} loads {gpts}, "
      f"diffusers {version('diffusers')} {unets}")  # fmt: skip
sys.exit(0 if gpts == [1.0, 2.0] and unets == [2.0, "FileNotFoundError"] else 1)
PYTHON
venv/bin/python -W ignore saved.py 2>stderr || { tail -n 5 stderr; exit 1; }
