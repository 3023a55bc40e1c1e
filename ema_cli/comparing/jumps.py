"""Notice another run among the checkpoints, by samples of their weights.

The weights of one run move little between neighbours, and further the longer it trains. Two signs say that a checkpoint
is not of the run: it lies far from both neighbours, which lie near each other; or the weights jump between two
neighbours by far more than around it, and by about their size. A learning rate that warms up, restarts or falls changes
distances, too, and never as much: in 44 small trainings neighbours lay at most 0.6 of the weights' size apart, and a
checkpoint at most 2.1 times as far from both neighbours as they from each other; checkpoints of two runs lay 1.1 to 1.6
of their size apart, and those in turn 3 to 60 times as far.

No numpy: the samples are small, and to load it takes longer than all that is done with them.
"""

from __future__ import annotations

import math
import struct
import threading
from array import array
from collections.abc import Sequence
from dataclasses import field
from itertools import pairwise

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType

_FAR = 3.0  # times the distance of others
_LEAST = 0.01  # of the weights' size: a run that hardly moves shows nothing
_LEAST_JUMP = 0.8  # of the weights' size: less is within reach of a learning rate that restarts
_MOST_ELEMENTS = 128  # of a sample that are kept
_MOST_BYTES = 4 << 20  # that all samples take

# How `struct` names a stored float, and the bytes that it lacks: a bfloat16 is the upper half of a float32.
_FORMS = {"BF16": ("f", 2), "F16": ("e", 0), "F32": ("f", 0), "F64": ("d", 0)}

Sample = tuple[str, int]


@dataclass(slots=True)
class WeightSamples:
    """The samples of the weights of several checkpoints: a few elements of each block. Filled by several threads."""

    checkpoints: int
    _vectors: dict[Checkpoint, dict[Sample, array[float]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, checkpoint: Checkpoint, name: str, start: int, data: bytes | bytearray) -> None:
        """Keep elements of a block that was read of a tensor; what is not averaged is not kept."""
        dtype = checkpoint.tensors.specs[name].dtype
        if dtype.name not in _FORMS:
            return
        most = max(1, min(_MOST_ELEMENTS, _MOST_BYTES // (64 * max(self.checkpoints, 1))))
        kept = _spread(dtype, data, most)
        with self._lock:
            self._vectors.setdefault(checkpoint, {})[name, start] = kept

    def distances(self, checkpoints: Sequence[Checkpoint], apart: int) -> list[float] | None:
        """Return the relative distance of each checkpoint from the one `apart` later: the median over the samples.

        Samples that never move, as those of frozen weights, or are not finite, do not count; None where no other is in
        all checkpoints.
        """
        tables = [self._vectors.get(checkpoint, {}) for checkpoint in checkpoints]
        rows = []
        for key in tables[0]:
            if all(key in table for table in tables):
                vectors = [table[key] for table in tables]
                sizes = [math.hypot(*vector) for vector in vectors]
                size = _median(sizes)
                if size > 0 and all(map(math.isfinite, sizes)) and any(vector != vectors[0] for vector in vectors):
                    rows.append([math.dist(*pair) / size for pair in zip(vectors, vectors[apart:], strict=False)])
        return [_median(column) for column in zip(*rows, strict=True)] if rows else None


def _spread(dtype: DType, data: bytes | bytearray, most: int) -> array[float]:
    """Return at most so many of the stored floats, at equal distances."""
    form, lacking = _FORMS[dtype.name]
    size, width = dtype.itemsize, dtype.itemsize + lacking
    every = size * -(-len(data) // (size * most))
    count = -(-len(data) // every)
    kept = bytearray(count * width)
    for byte in range(size):
        kept[lacking + byte :: width] = data[byte::every]
    return array("f", struct.unpack(f"<{count}{form}", kept))


def _median(values: Sequence[float]) -> float:
    """Return the median. That of `statistics` takes longer to load than all of this."""
    ordered = sorted(values)
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def jump_notes(samples: WeightSamples, checkpoints: Sequence[Checkpoint], clocks: Sequence[float]) -> list[str]:
    """Return a note where the weights show that checkpoints are of several runs.

    Args:
        samples: those of the checkpoints.
        checkpoints: the checkpoints, the oldest first.
        clocks: the clock of each, in one unit.
    """
    if len(checkpoints) < 3 or any(other.tensors.specs is not checkpoints[0].tensors.specs for other in checkpoints):
        return []
    steps, twos = (samples.distances(checkpoints, apart) for apart in (1, 2))
    if steps is None or twos is None:
        return []
    far = [*_aside(steps, twos), *_jumps(steps, [b - a for a, b in pairwise(clocks)])]
    if not far:
        return []
    number, times = max(far, key=lambda place: place[1])
    older, newer = checkpoints[number], checkpoints[number + 1]
    more = f" ({len(far) - 1} more such places)" if len(far) > 1 else ""
    return [
        f"from {older.name} to {newer.name} the weights move {times:.0f} times as far as around it, by samples{more}: "
        "are these checkpoints of one run? If not, --exclude leaves some out"
    ]


def _aside(steps: Sequence[float], twos: Sequence[float]) -> list[tuple[int, float]]:
    """Return where a checkpoint lies far from both neighbours, which are near each other, and how many times as far."""
    found = []
    for number, across in enumerate(twos):
        least = min(steps[number], steps[number + 1])
        if least > max(_LEAST, _FAR * across):
            found.append((number, least / max(across, _LEAST)))
    return found


def _jumps(steps: Sequence[float], gaps: Sequence[float]) -> list[tuple[int, float]]:
    """Return the steps that are far longer than those around them, and how many times as long.

    A step over a longer time may be as many times longer. At the ends, where there is one neighbour, all steps count.
    """
    found = []
    for number, step in enumerate(steps if len(steps) > 2 else ()):
        is_inner = 0 < number < len(steps) - 1
        others = (number - 1, number + 1) if is_inner else [other for other in range(len(steps)) if other != number]
        around = max(steps[other] * max(1.0, gaps[number] / gaps[other] if gaps[other] else 1.0) for other in others)
        if step > max(_LEAST_JUMP, _FAR * around):
            found.append((number, step / max(around, _LEAST)))
    return found
