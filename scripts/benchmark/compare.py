"""Whether two outputs are the same average: names, shapes, dtypes, and how far the values are apart."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_STEP = 1 << 22  # values at a time
# How numbers are stored, and how far averages of many checkpoints are apart by rounding alone, of the largest value.
_TYPES = {"BF16": (np.dtype("<u2"), 2.0**-6), "F16": (np.dtype("<u2"), 2.0**-9), "F32": (np.dtype("<u4"), 2.0**-19)}

Stored = dict[str, tuple[str, list[int], NDArray[np.unsignedinteger]]]


@dataclass(frozen=True)
class Difference:
    """How far an output is from ours."""

    differing: float  # share of the values that are not bit-equal
    steps: int  # the largest distance, in representable numbers of the output's dtype (large near 0 says little)
    relative: float  # the largest difference, as a share of the largest value of its tensor

    def as_text(self) -> str:
        """Return it in few words."""
        if not self.differing:
            return "bit-equal"
        return f"{self.differing:.2%} of values differ, by at most {self.relative:.1g} of the largest"


class NotTheSame(Exception):
    """The outputs are not the same average; the message says in what they differ."""


def compare(ours: Path, theirs: Path) -> Difference:
    """Return how far two outputs are apart; each is a file, or a folder of files, of safetensors.

    Raises:
        NotTheSame: where names, shapes or dtypes differ, or a value by more than rounding explains.
    """
    first, second = open_output(ours), open_output(theirs)
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise NotTheSame(f"{len(odd)} tensors are only in one, such as '{odd[0]}'")
    differing = count = steps = 0
    relative = 0.0
    for name, (dtype, shape, values) in first.items():
        other_dtype, other_shape, other = second[name]
        if (dtype, shape) != (other_dtype, other_shape):
            raise NotTheSame(f"'{name}' is {other_dtype} {other_shape}, ours {dtype} {shape}")
        largest = apart = 0.0
        for start in range(0, len(values), _STEP):
            a, b = values[start : start + _STEP], other[start : start + _STEP]
            count += len(a)
            changed = np.flatnonzero(a != b)
            largest = max(largest, float(np.abs(_numbers(a, dtype)).max()))
            if len(changed):
                a, b = a[changed], b[changed]
                differing += len(changed)
                steps = max(steps, int(np.abs(_ordered(a) - _ordered(b)).max()))
                # As float64: the difference must not be rounded, and a NaN must not pass for near.
                distance = np.abs(_numbers(a, dtype).astype(np.float64) - _numbers(b, dtype))
                apart = max(apart, float(np.where(np.isfinite(distance), distance, np.inf).max()))
        share = 0.0 if not apart else apart / largest if largest else np.inf
        if not share <= _TYPES[dtype][1]:  # nor is it where ours holds a NaN
            raise NotTheSame(f"'{name}' differs by {share:.2g} of its largest value")
        relative = max(relative, share)
    return Difference(differing / max(1, count), steps, relative)


def open_output(path: Path) -> Stored:
    """Return the tensors of an output, mapped."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise NotTheSame(f"nothing was written to {path.name}")
    found: Stored = {}
    for file in files:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        data = np.memmap(file, np.uint8, "r", offset=8 + length)
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[name] = entry["dtype"], entry["shape"], data[start:end].view(_TYPES[entry["dtype"]][0])
    return found


def _numbers(bits: NDArray[np.unsignedinteger], dtype: str) -> NDArray[np.float32]:
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    wide = bits.astype(np.uint32)
    return (wide << np.uint32(16) if dtype == "BF16" else wide).view(np.float32)


def _ordered(bits: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Return integers that are in the order of the numbers, neighbours one apart."""
    sign = 1 << (8 * bits.itemsize - 1)
    wide = bits.astype(np.int64)
    return np.where(wide & sign, sign - wide, wide)
