"""Tensors in pieces of several files: however they were cut, any range reads as it would from the whole."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.formats.boxes import make_box
from ema_cli.formats.pieces.tensors import PiecedTensors, PieceTable
from tests.formats.dcp.test_tensors import as_numpy, filled, grids, shapes, splits
from tests.formats.reading import read_range


class Bytes:
    """Bytes in memory, as a file."""

    path = Path("bytes")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        """Return a range."""
        return self.data[offset : offset + size]

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill a buffer."""
        out[:] = self.data[offset : offset + len(out)]


@given(data=st.data())
def test_any_range_of_a_tensor_in_boxes_is_that_of_the_whole(data: st.DataObject) -> None:
    """Boxes of any shapes, in any files, in any order, with anything between them."""
    name, dtype = data.draw(st.sampled_from([("F32", torch.float32), ("BF16", torch.bfloat16), ("BOOL", torch.bool)]))
    shape = data.draw(shapes())
    whole = as_numpy(filled(shape, dtype))
    boxes = data.draw(st.one_of(grids(shape), splits(shape)))
    spec = TensorSpec(DTYPES[name], shape)
    strides = [math.prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    stored = [b"", b"between"]
    placed = []
    for number, (offsets, sizes) in enumerate(boxes):
        ranges = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
        if all(sizes):
            placed.append((number % 2, len(stored[number % 2]), make_box(offsets, sizes, strides)))
            stored[number % 2] += whole[ranges].tobytes() + b"x"
    placed = data.draw(st.permutations(placed))
    table = PieceTable()
    tensors = PiecedTensors({"w": spec}, {"w": table.add_boxes(spec, placed)}, table, [Bytes(s) for s in stored], "a")
    first = data.draw(st.integers(0, spec.count))
    last = data.draw(st.integers(first, spec.count))
    size = spec.dtype.itemsize
    assert read_range(tensors, "w", first * size, last * size) == whole.tobytes()[first * size : last * size]
    runs = tensors.runs("w", first * size, (last - first) * size)
    if runs is not None:
        found = b"".join(source.read(at, nbytes) for source, at, nbytes in runs)
        assert found == whole.tobytes()[first * size : last * size]
    located = tensors.locate("w")
    if located is not None:
        assert located[0].read(located[1], spec.nbytes) == whole.tobytes()
