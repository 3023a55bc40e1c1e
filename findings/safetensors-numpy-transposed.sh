#!/usr/bin/env bash
# Seen with safetensors 0.8.0 beside 0.7.0, and numpy 2.4.6, on 2026-11-30
#
# safetensors.numpy.save_file writes the memory of an array from its beginning, with the array's shape before it, and does
# not ask how the numbers lie in that memory. A transposed array, one in Fortran's order or each second number of one is
# written with its numbers in wrong places, or with numbers that are not its own, without an error, and loads so. 0.7.0 wrote
# what the array holds. safetensors.torch refuses such tensors. So who exports kernels of Flax as weights of torch, with
# array.T, gets a model of the right shapes that is wrong.
#
# Seen: with 0.7.0 all three load as they were; with 0.8.0 none does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
cat >saved.py <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

whole = np.arange(12, dtype=np.float32).reshape(3, 4)
arrays = {"transposed": whole.T, "in Fortran's order": np.asfortranarray(whole), "each second": whole[:, ::2]}
save_file(arrays, "saved.safetensors")
loaded = load_file("saved.safetensors")
same = {name: np.array_equal(array, loaded[name]) for name, array in arrays.items()}
print(f"safetensors {safetensors.__version__}: loads as it was: {same}")
sys.exit(0 if set(same.values()) == {sys.argv[1] == "same"} else 1)
PYTHON
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.7.0 numpy==2.4.6
venv/bin/python saved.py same
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.8.0
venv/bin/python saved.py different
