"""Whether a kernel gives the bytes that numpy gives, on a few numbers: asked before it is used.

Numpy's are known by their sum, so that it need not be loaded; a test makes it anew.
"""

from __future__ import annotations

import hashlib
import struct

from ema_cli.dtypes import DTYPES
from ema_cli.folding.kernel import Kernel, SumSpec, WeightTable, WorkspaceSize, sum_bytes

_COUNT = 2 * 128 + 37  # whole tiles of every variant, and a part of one
_WEIGHTS = WeightTable.of([[0.125, 0.3, 0.575], [-0.7, 1.7, 0.0], [0.0, 1e-3, 0.999]])
# The dtypes of three checkpoints, the oldest first, and of the averages.
_CASES = (
    ("BF16 BF16 BF16", "BF16"), ("BF16 BF16 BF16", "F32"), ("F16 F16 F16", "F16"), ("F32 F32 F32", "F32"),
    ("F32 F16 BF16", "BF16"), ("BF16 F32 F16", "F16"), ("F64 F64 F64", "F64"), ("F64 F16 F32", "F32"),
    ("BF16 F64 F64", "BF16"), ("F64 F32 F64", "F16"),
)  # fmt: skip
_SUM = "51e5817584b5046d4c1d894cefd3c5135865437253859b8d90e25e9ed39b72ad"  # of numpy's averages


def agrees(kernel: Kernel) -> bool:
    """Return whether the kernel's averages are numpy's, to the last bit: a compiler may have fused or reordered."""
    return sum_of_averages(kernel) == _SUM


def sum_of_averages(kernel: Kernel) -> str:
    """Return the sha256 of what a kernel gives in all cases."""
    digest = hashlib.sha256()
    rows = [_stored(number) for number in range(3)]
    for names, target in _CASES:
        dtypes = [DTYPES[name] for name in names.split()]
        spec = SumSpec(_COUNT, dtypes, DTYPES[target], _WEIGHTS)
        nbytes = -(-_COUNT * sum_bytes(dtypes) // 64) * 64
        sums = kernel.workspace(WorkspaceSize(2, nbytes, len(_WEIGHTS.rows), len(_WEIGHTS.bases))).begin(spec)
        for numbers in ([2, 1], [0]):
            for number, row in zip(numbers, sums.rows(numbers, [0] * len(numbers)), strict=True):
                row[:] = rows[number][dtypes[number].name]
            sums.add(numbers)
        for average in range(len(_WEIGHTS.rows)):
            digest.update(sums.encode(average) if sums.complete(average) else b"not finite")
    return digest.hexdigest()


def _stored(number: int) -> dict[str, bytes]:
    """Return numbers of all magnitudes in each dtype, near each other in different checkpoints.

    The first are zeros and tiny ones.
    """
    values = [0.0, -0.0, (number - 1) * 0.0, 1e-7 * number, -1e-41 * (number + 1)]
    for position in range(len(values) + 1, _COUNT + 1):
        bits = position * 0x9E3779B97F4A7C15 & (1 << 64) - 1  # they look like random ones
        value = (bits >> 11) * 2.0**-53 - 0.5
        values.append(value * 2.0 ** ((bits >> 4 & 31) - 20) * (1 + number * 2.0**-9 * (bits & 3)))
    single = struct.pack(f"<{_COUNT}f", *values)
    upper = bytearray(2 * _COUNT)
    upper[::2], upper[1::2] = single[2::4], single[3::4]
    return {
        "F64": struct.pack(f"<{_COUNT}d", *values),
        "F32": single,
        "F16": struct.pack(f"<{_COUNT}e", *values),
        "BF16": bytes(upper),
    }
