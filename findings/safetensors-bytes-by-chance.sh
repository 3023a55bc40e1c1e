#!/usr/bin/env bash
# Seen with safetensors 0.8.0 and numpy 2.4.6 on 2026-11-30
#
# save_file writes what the dict `metadata` has in an order that chance gives anew for each file, also in one process. So
# the same tensors with the same metadata, of two keys or more, are files with different bytes, and their sums cannot be
# compared: a checkpoint that is saved again, or made again by the same program, is another file. Tensors have an order of
# their own (by type and name). One would expect the same for metadata, or the order of the dict.
#
# Seen: of 40 saves with six keys of metadata all or nearly all differ; with one key all are equal, and without metadata.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import hashlib
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

tensors = {"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
names = ("format", "step", "run", "dtype", "license", "language")


def sums(keys):
    found = set()
    for _ in range(40):
        save_file(tensors, "saved.safetensors", metadata=dict.fromkeys(names[:keys], "pt") or None)
        found.add(hashlib.sha256(Path("saved.safetensors").read_bytes()).hexdigest())
        assert all(np.array_equal(tensor, tensors[name]) for name, tensor in load_file("saved.safetensors").items())
    return len(found)


found = {keys: sums(keys) for keys in (0, 1, 6)}
print(f"safetensors {safetensors.__version__}: different files of 40 saves, by the number of keys: {found}")
sys.exit(0 if found[0] == found[1] == 1 and found[6] > 20 else 1)
PYTHON
