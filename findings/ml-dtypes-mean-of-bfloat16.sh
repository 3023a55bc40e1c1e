#!/usr/bin/env bash
# Seen with numpy 2.4.6 and ml_dtypes 0.6.0 on 2026-11-30
#
# np.mean of a float16 array sums in float32, and rounds once. Of a bfloat16 array, which is what JAX's, Orbax's and Flax's
# checkpoints become in numpy, it sums in bfloat16: numpy knows the float16 of its own by name, and no other short float.
# A sum stands still where it is 256 times what is added. So the mean of many equal checkpoints is a part of them, and of
# twenty it is not what each of them is. One would expect the float16's care of a type that has fewer bits.
#
# Seen: the mean of 1000 ones is 0.256 in bfloat16, 1 in float16, and 1 in bfloat16 with dtype=np.float32; of twenty equal
# arrays of 1000 random numbers more than half of the numbers differ from those of each, in float16 none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
venv/bin/python - <<'PYTHON'
import sys

import ml_dtypes
import numpy as np

numbers = np.random.default_rng(0).normal(size=1000)
ones, changed = {}, {}
for dtype in (ml_dtypes.bfloat16, np.float16):
    name = np.dtype(dtype).name
    checkpoint = numbers.astype(dtype)
    ones[name] = float(np.mean(np.ones(1000, dtype)))
    changed[name] = float(np.mean(np.mean([checkpoint] * 20, axis=0) != checkpoint))
wide = float(np.mean(np.ones(1000, ml_dtypes.bfloat16), dtype=np.float32))
print(f"numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}: mean of 1000 ones {ones}, with dtype=float32 {wide}; "
      f"part of the numbers that the mean of 20 equal arrays changes {changed}")  # fmt: skip
is_so = round(ones["bfloat16"], 3) == 0.256 and ones["float16"] == wide == 1
sys.exit(0 if is_so and changed["bfloat16"] > 0.5 and changed["float16"] == 0 else 1)
PYTHON
