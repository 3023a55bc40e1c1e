"""Whether a kernel gives the bytes that numpy gives, on a few numbers: asked before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ema_cli.dtypes import DTYPES, DType
from ema_cli.folding.kernel import Kernel, SumSpec, WeightTable, WorkspaceSize, sum_bytes
from ema_cli.folding.kernel.floats import encode
from ema_cli.folding.kernel.numpy_kernel import NUMPY

_COUNT = 2 * 128 + 37  # whole tiles of every variant, and a part of one
_WEIGHTS = WeightTable.of([[0.125, 0.3, 0.575], [-0.7, 1.7, 0.0], [0.0, 1e-3, 0.999]])
# The dtypes of three checkpoints, the oldest first, and of the averages.
_CASES = (
    ("BF16 BF16 BF16", "BF16"), ("BF16 BF16 BF16", "F32"), ("F16 F16 F16", "F16"), ("F32 F32 F32", "F32"),
    ("F32 F16 BF16", "BF16"), ("BF16 F32 F16", "F16"), ("F64 F64 F64", "F64"), ("F64 F16 F32", "F32"),
    ("BF16 F64 F64", "BF16"), ("F64 F32 F64", "F16"),
)  # fmt: skip


def agrees(kernel: Kernel) -> bool:
    """Return whether the kernel's averages are numpy's, to the last bit: a compiler may have fused or reordered."""
    for names, target in _CASES:
        dtypes = [DTYPES[name] for name in names.split()]
        rows = [_stored(dtype, number) for number, dtype in enumerate(dtypes)]
        spec = SumSpec(_COUNT, dtypes, DTYPES[target], _WEIGHTS)
        if _averages(kernel, spec, rows) != _averages(NUMPY, spec, rows):
            return False
    return True


def _stored(dtype: DType, number: int) -> bytes:
    """Return numbers of all magnitudes, near each other in different checkpoints; the first are zeros and tiny ones."""
    # A plain congruence: numpy's generators take longer to load than all of this.
    bits = np.arange(1, _COUNT + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    values = (bits >> np.uint64(11)) * 2.0**-53 - 0.5
    values *= np.exp2((bits >> np.uint64(4) & np.uint64(31)).astype(np.float64) - 20.0)
    values *= 1 + number * 2.0**-9 * (bits & np.uint64(3)).astype(np.float64)
    values[:5] = [0.0, -0.0, (number - 1) * 0.0, 1e-7 * number, -1e-41 * (number + 1)]
    floats = values if dtype.bits == 64 else values.astype(np.float32)
    return bytes(encode(dtype, floats, np.empty_like(floats)))


def _averages(kernel: Kernel, spec: SumSpec, rows: Sequence[bytes]) -> list[bytes]:
    """Return the bytes of all averages, two checkpoints added at once, then one."""
    nbytes = -(-spec.count * sum_bytes(spec.dtypes) // 64) * 64
    sums = kernel.workspace(WorkspaceSize(2, nbytes, len(_WEIGHTS.rows), len(_WEIGHTS.bases))).begin(spec)
    for numbers in ([2, 1], [0]):
        for number, row in zip(numbers, sums.rows(numbers, [0] * len(numbers)), strict=True):
            row[:] = rows[number]
        sums.add(numbers)
    return [bytes(sums.encode(average)) for average in range(len(_WEIGHTS.rows)) if sums.complete(average)]
