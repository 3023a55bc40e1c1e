"""Notice another run among the checkpoints, by samples of their weights.

The weights of one run move little between neighbours, and further the longer it trains. Two signs say that a checkpoint
is not of the run: it lies far from both neighbours, which lie near each other; or the weights jump between two
neighbours by far more than around it, and by about their size. A learning rate that warms up, restarts or falls changes
distances, too, and never as much: in 44 small trainings neighbours lay at most 0.6 of the weights' size apart, and a
checkpoint at most 2.1 times as far from both neighbours as they from each other; checkpoints of two runs lay 1.1 to 1.6
of their size apart, and those in turn 3 to 60 times as far.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint
from ema_cli.folding.kernel.floats import Floats, decode, sum_dtype

_FAR = 3.0  # times the distance of others
_LEAST = 0.01  # of the weights' size: a run that hardly moves shows nothing
_LEAST_JUMP = 0.8  # of the weights' size: less is within reach of a learning rate that restarts
_MOST_ELEMENTS = 128  # of a sample that are kept
_MOST_BYTES = 4 << 20  # that all samples take

Sample = tuple[str, int]


@dataclass(slots=True)
class WeightSamples:
    """The samples of the weights of several checkpoints: a few elements of each block. Filled by several threads."""

    checkpoints: int
    _vectors: dict[Checkpoint, dict[Sample, NDArray[np.float32]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, checkpoint: Checkpoint, name: str, start: int, data: bytes | bytearray) -> None:
        """Keep elements of a block that was read of a tensor; what is not averaged is not kept."""
        dtype = checkpoint.tensors.specs[name].dtype
        if dtype.kind != "float" or dtype.bits < 16:
            return
        most = max(1, min(_MOST_ELEMENTS, _MOST_BYTES // (64 * max(self.checkpoints, 1))))
        values: Floats = np.empty(len(data) // dtype.itemsize, sum_dtype([dtype]))
        decode(dtype, np.frombuffer(data, np.uint8), values)
        with np.errstate(over="ignore"):
            kept = values[:: -(-len(values) // most)].astype(np.float32)
        with self._lock:
            self._vectors.setdefault(checkpoint, {})[name, start] = kept

    def distances(self, checkpoints: Sequence[Checkpoint], apart: int) -> NDArray[np.float64] | None:
        """Return the relative distance of each checkpoint from the one `apart` later: the median over the samples.

        Samples that never move, as those of frozen weights, or are not finite, do not count; None where no other is in
        all checkpoints.
        """
        tables = [self._vectors.get(checkpoint, {}) for checkpoint in checkpoints]
        rows = []
        for key in tables[0]:
            if all(key in table for table in tables):
                values = np.stack([table[key] for table in tables])
                sizes = np.linalg.norm(values, axis=1)
                size = _median(sizes)
                if size > 0 and np.isfinite(sizes).all() and np.any(values != values[0]):
                    rows.append(np.linalg.norm(values[apart:] - values[:-apart], axis=1) / size)
        return _median(np.stack(rows)) if rows else None


def _median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of finite values along the first axis. numpy's own loads its masked arrays, and takes long."""
    ordered: NDArray[np.float64] = np.sort(values, axis=0)
    middle = ordered[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return np.asarray(middle.mean(axis=0))


def jump_notes(samples: WeightSamples, checkpoints: Sequence[Checkpoint], clocks: Sequence[float]) -> list[str]:
    """Return a note where the weights show that checkpoints are of several runs.

    Args:
        samples: those of the checkpoints.
        checkpoints: the checkpoints, the oldest first.
        clocks: the clock of each, in one unit.
    """
    if len(checkpoints) < 3 or any(other.tensors.specs is not checkpoints[0].tensors.specs for other in checkpoints):
        return []
    with np.errstate(all="ignore"):
        one, two = (samples.distances(checkpoints, apart) for apart in (1, 2))
    if one is None or two is None or not np.isfinite([*one, *two]).all():
        return []
    steps, twos = one.tolist(), two.tolist()
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
