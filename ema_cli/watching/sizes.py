"""How large the averages of a moment are, and how far the checkpoint is from them: by a sample of both.

`EMA.store` writes both sizes beside each average, as `--from stored` judges the rounding by them. A judgement needs no
more than a digit or two, so that a sample is enough. It is the same elements at each moment, whatever the threads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dtypes import DType
from ema_cli.folding.kernel.floats import Floats, decode
from ema_cli.runs.stored_file import Sizes
from ema_cli.storage.names import StorePath
from ema_cli.system.threads import reading_pool

_TENSORS = 16  # of one dtype and shape: they are alike
_STRETCHES = 8  # of a tensor, evenly spaced
_THREADS_IN_STORE = 32  # that wait for a request each
_STRETCH = 1024  # elements that lie side by side


def measure(
    newest: Checkpoint, before: Sequence[Checkpoint], shares: Sequence[float], copied: Collection[str]
) -> list[Sizes]:
    """Return the sizes of each average after an update, before it is made.

    Where the average before is a, and x the checkpoint, of which share w enters, they are the norms of a + w (x - a)
    and of (1 - w) (x - a).

    Args:
        newest: the checkpoint.
        before: each average with its rest, in float64; none where the checkpoint is the first copy.
        shares: that of the checkpoint in each average.
        copied: names of tensors that are not averaged.

    Raises:
        CheckpointError: where a tensor cannot be read.
    """

    def of_stretch(name: str, start: int, count: int) -> Floats:
        sums = np.empty((len(shares), 2))
        values = _read(newest, name, start, count)
        for number, share in enumerate(shares):
            average = _read(before[number], name, start, count) if before else values
            moved = values - average
            sums[number] = _square(average + share * moved), _square((1 - share) * moved)
        return sums

    squares = np.zeros((len(shares), 2))
    in_store = any(isinstance(one.path, StorePath) for one in (newest, *before))
    with reading_pool(_THREADS_IN_STORE if in_store else 1, "sizes") as pool:
        for names, spec in _alike(newest.tensors.specs, copied):
            some, ranges = names[:: -(-len(names) // _TENSORS)], _ranges(spec.count)
            stretches = [(name, start, count) for name in some for start, count in ranges]
            sampled = sum(pool.map(of_stretch, *zip(*stretches, strict=True)), np.zeros_like(squares))
            squares += sampled * (len(names) * spec.count / sum(count for _, _, count in stretches))
    return [Sizes(math.sqrt(norm), math.sqrt(spread)) for norm, spread in squares.tolist()]


def _alike(specs: Mapping[str, TensorSpec], copied: Collection[str]) -> Iterator[tuple[Sequence[str], TensorSpec]]:
    """Yield the names of the averaged tensors of each spec."""
    alike: dict[tuple[DType, tuple[int, ...]], list[str]] = {}
    for name, spec in specs.items():
        if spec.dtype.averaged and spec.count and name not in copied:
            alike.setdefault((spec.dtype, spec.shape), []).append(name)
    return ((names, specs[names[0]]) for names in alike.values())


def _ranges(count: int) -> list[tuple[int, int]]:
    """Return where each stretch of a tensor begins, and its length."""
    if count <= _STRETCHES * _STRETCH:
        return [(0, count)]
    last = count - _STRETCH
    return [(last * number // (_STRETCHES - 1), _STRETCH) for number in range(_STRETCHES)]


def _read(checkpoint: Checkpoint, name: str, start: int, count: int) -> NDArray[np.float64]:
    """Return elements of a tensor, two for each complex one; what is not finite, as in a mask, is 0."""
    dtype = checkpoint.tensors.specs[name].dtype
    stored = np.empty(dtype.nbytes(count), np.uint8)
    checkpoint.tensors.read_into(name, dtype.nbytes(start), stored.data)
    values = np.empty(count * dtype.components)
    decode(dtype, stored, values)
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _square(values: NDArray[np.float64]) -> float:
    """Return the sum of squares. Not a dot product of BLAS: that adds in another order on each processor."""
    with np.errstate(over="ignore"):
        return float(np.add.reduce(values * values))
