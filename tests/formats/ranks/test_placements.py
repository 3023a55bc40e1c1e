"""Which indices a rank has of a tensor: as torch cuts it."""

from __future__ import annotations

import random
from itertools import product
from math import prod

import pytest
import torch
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from ema_cli.formats.boxes import Damaged
from ema_cli.formats.placements import Placement, boxes_of, spans_of


def cut_by_torch(whole: torch.Tensor, cuts: list[tuple[int, int, Placement]]) -> torch.Tensor:
    """Return a rank's part of a tensor, as torch's placements split it one after the other."""
    for ranks, number, placement in cuts:
        if placement.dimension is not None:
            kind = Shard(placement.dimension)
            if placement.blocks > 1:
                kind = _StridedShard(placement.dimension, split_factor=placement.blocks)
            whole = kind._split_tensor(whole, ranks, with_padding=False)[0][number]
    return whole


def drawn(source: random.Random) -> tuple[tuple[int, ...], list[int], list[Placement]]:
    """Draw a shape, a mesh and placements."""
    shape = tuple(source.randrange(1, 12) for _ in range(source.randrange(1, 4)))
    mesh = [source.randrange(1, 5) for _ in range(source.randrange(1, 4))]
    placements = [
        Placement(source.choice([None, *range(len(shape))]), source.choice([1, 1, 2, 3])) for _ in range(len(mesh))
    ]
    return shape, mesh, placements


def test_a_rank_has_the_indices_that_torch_gives_it() -> None:
    """For drawn shapes, meshes and placements, strided ones among them, a rank has what torch cuts out for it."""
    source = random.Random(3)
    for _ in range(150):
        shape, mesh, placements = drawn(source)
        whole = torch.arange(prod(shape)).reshape(shape)
        for at in product(*map(range, mesh)):
            cuts = list(zip(mesh, at, placements, strict=True))
            own = whole
            for dimension, spans in enumerate(spans_of(shape, cuts)):
                indices = [index for first, length in spans for index in range(first, first + length)]
                own = own.index_select(dimension, torch.tensor(indices, dtype=torch.int64))
            assert torch.equal(own, cut_by_torch(whole, cuts)), (shape, cuts)


def test_boxes_say_where_each_element_of_a_share_belongs() -> None:
    """Boxes of a share, in order in memory or not, put each of its elements to its place in the whole."""
    source = random.Random(4)
    for number in range(100):
        shape, mesh, placements = drawn(source)
        whole = torch.arange(prod(shape)).reshape(shape)
        cuts = [(ranks, source.randrange(ranks), place) for ranks, place in zip(mesh, placements, strict=True)]
        share = cut_by_torch(whole, cuts).contiguous()
        if number % 2 and share.numel():  # as it lies in a larger tensor
            share = torch.stack([share, share - 1], dim=number % (share.dim() + 1)).select(
                number % (share.dim() + 1), 0
            )
        seen = 0
        for begin, offsets, lengths in boxes_of(spans_of(shape, cuts), share.stride()):
            box = whole[tuple(slice(at, at + length) for at, length in zip(offsets, lengths, strict=True))]
            stored = torch.as_strided(share, (box.numel(),), (1,), share.storage_offset() + begin)
            assert torch.equal(stored, box.reshape(-1))
            seen += box.numel()
        assert seen == share.numel()


@pytest.mark.parametrize(
    "cuts",
    [
        [(2, 0, Placement(1))],
        [(2, 2, Placement(0))],
        [(2, 0, Placement(0, 0))],
        [(2, 0, Placement(0, 1 << 40))],
        [(2, 0, Placement(0, 1 << 11)), (2, 0, Placement(0, 1 << 11))],
    ],
)
def test_what_cannot_be_is_refused(cuts: list[tuple[int, int, Placement]]) -> None:
    """A dimension that is not there, a rank outside of the mesh, and blocks without number are refused at once."""
    with pytest.raises(Damaged):
        spans_of((1 << 40,), cuts)


def test_a_share_that_lies_in_single_elements_is_refused() -> None:
    """A large share in another order of elements would be as many boxes as elements."""
    with pytest.raises(Damaged, match="contiguous"):
        list(boxes_of([[(0, 1 << 20)], [(0, 1 << 20)]], (1, 1 << 20)))


def test_a_share_without_elements_has_no_boxes() -> None:
    """It has none, however long its other dimensions are."""
    assert not list(boxes_of([[(0, 1 << 50)], []], (1, 1)))
