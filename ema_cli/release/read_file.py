"""Read a file once, in constant memory, for its sha256 and for the tensors that hold NaN or infinity."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.storage.source import InputFile

_BLOCK_BYTES = 1 << 20


@dataclass(slots=True)
class NotFinite:
    """The number of elements of a tensor that are NaN or infinity, and the index of the first."""

    count: int
    first: int


@dataclass(frozen=True, slots=True)
class FileSum:
    """The sha256 of a file, and the non-finite elements of its tensors, by tensor name."""

    sha256: str
    not_finite: Mapping[str, NotFinite]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The bytes of a file from `begin` to `end`, in which tensors of one dtype follow one another without a gap.

    `begins` and `names`: the first byte and the name of each tensor.
    """

    begin: int
    end: int
    dtype: DType
    begins: tuple[int, ...]
    names: tuple[str, ...]


def read_file(
    file: InputFile,
    tensors: Mapping[str, tuple[int, TensorSpec]],
    hasher: Executor,
    count: Callable[[int], None] = lambda _: None,
) -> FileSum:
    """Return the sha256 of a file, and the non-finite elements of its tensors.

    While the hasher works on one block, the next one is read and searched.

    Args:
        file: the opened file.
        tensors: tensor name -> its first byte in the file, and its spec.
        hasher: runs the hashing.
        count: called with the number of bytes of each block; an exception that it raises ends the reading.

    Raises:
        CheckpointError: if the file cannot be read, or is cut short meanwhile.
    """
    sha256 = hashlib.sha256()
    stretches = _stretches(tensors)
    buffers = [bytearray(min(_BLOCK_BYTES, file.size)) for _ in range(2)]
    scratch = np.empty(_BLOCK_BYTES, dtype=np.uint8)
    not_finite: dict[str, NotFinite] = {}
    pending: Future[None] | None = None
    first = 0  # index of the first stretch that does not end before this block
    try:
        for number, (begin, end) in enumerate(pairwise(_cuts(file.size, stretches))):
            block = memoryview(buffers[number % 2])[: end - begin]
            file.read_into(begin, block)
            if pending is not None:
                pending.result()
            pending = hasher.submit(sha256.update, block)
            while first < len(stretches) and stretches[first].end <= begin:
                first += 1
            for stretch in _overlapping(stretches, first, end):
                _count_not_finite(
                    stretch, max(begin, stretch.begin), min(end, stretch.end), begin, block, scratch, not_finite
                )
            count(end - begin)
    finally:
        if pending is not None:
            pending.result()
    return FileSum(sha256.hexdigest(), not_finite)


def _stretches(tensors: Mapping[str, tuple[int, TensorSpec]]) -> list[_Stretch]:
    """Return the stretches of averaged tensors, in order; a hundred thousand small neighbours give few stretches."""
    numbers = [(begin, name, spec) for name, (begin, spec) in tensors.items() if spec.dtype.averaged and spec.nbytes]
    stretches: list[_Stretch] = []
    pending: list[tuple[int, str, TensorSpec]] = []  # neighbours of one dtype
    for begin, name, spec in sorted(numbers, key=lambda number: number[0]):
        if pending and (_end(pending[-1]) != begin or pending[-1][2].dtype != spec.dtype):
            stretches.append(_stretch(pending))
            pending = []
        pending.append((begin, name, spec))
    return [*stretches, _stretch(pending)] if pending else stretches


def _end(tensor: tuple[int, str, TensorSpec]) -> int:
    begin, _, spec = tensor
    return begin + spec.nbytes


def _stretch(tensors: Sequence[tuple[int, str, TensorSpec]]) -> _Stretch:
    begins, names = tuple(begin for begin, _, _ in tensors), tuple(name for _, name, _ in tensors)
    return _Stretch(begins[0], _end(tensors[-1]), tensors[0][2].dtype, begins, names)


def _cuts(size: int, stretches: Sequence[_Stretch]) -> Iterator[int]:
    """Yield the first byte of each block, and the end of the last: no element lies in two blocks."""
    begins = [stretch.begin for stretch in stretches]
    at = 0
    yield at
    while at < size:
        end = min(at + _BLOCK_BYTES, size)
        stretch = stretches[max(bisect_right(begins, end) - 1, 0)] if stretches else None
        if stretch is not None and stretch.begin < end < stretch.end:
            end -= (end - stretch.begin) % stretch.dtype.itemsize
        at = end
        yield at


def _overlapping(stretches: Sequence[_Stretch], first: int, end: int) -> Iterator[_Stretch]:
    while first < len(stretches) and stretches[first].begin < end:
        yield stretches[first]
        first += 1


def _count_not_finite(
    stretch: _Stretch,
    begin: int,
    end: int,
    block_begin: int,
    block: memoryview,
    scratch: NDArray[np.uint8],
    not_finite: dict[str, NotFinite],
) -> None:
    """Add the non-finite elements in a part of a block to `not_finite`.

    Args:
        stretch: the tensors that the part belongs to.
        begin, end: the part, in bytes from the start of the file; inside the stretch and the block.
        block_begin: the first byte of the block in the file.
        block: the bytes of the block.
        scratch: memory of the size of a block.
        not_finite: tensor name -> its non-finite elements so far.
    """
    # In NaN and infinity all bits of the exponent are set. Comparing bits is faster than comparing numbers.
    kind, exponent = f"<u{stretch.dtype.component_bits // 8}", stretch.dtype.exponent_mask
    bits: NDArray[Any] = np.frombuffer(block[begin - block_begin : end - block_begin], dtype=kind)
    masked = scratch.view(kind)[: len(bits)]
    np.bitwise_and(bits, bits.dtype.type(exponent), out=masked)
    if masked.max() != exponent:
        return
    # A complex element counts once, whether one of its parts is not finite or both.
    elements = np.unique(np.flatnonzero(masked == exponent) // stretch.dtype.components)
    places = begin + elements * stretch.dtype.itemsize
    owners = np.searchsorted(np.array(stretch.begins), places, side="right") - 1
    for owner in np.unique(owners):
        name, mine = stretch.names[owner], places[owners == owner]
        at = (int(mine[0]) - stretch.begins[owner]) // stretch.dtype.itemsize
        known = not_finite.setdefault(name, NotFinite(0, at))
        known.count += len(mine)
