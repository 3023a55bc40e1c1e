"""How tensors are cut into blocks."""

from __future__ import annotations

import torch

from ema_cli.checkpoint import Checkpoint
from ema_cli.folding.blocks import Block, bytes_to_read, make_blocks, make_groups
from ema_cli.folding.sample import Sample
from tests.folding.in_memory import checkpoint


def blocks_of(checkpoints: list[Checkpoint], nbytes: int, sample: Sample | None = None) -> list[Block]:
    """Return the blocks in which all tensors are folded in their own dtypes."""
    targets = {name: spec.dtype for name, spec in checkpoints[-1].tensors.specs.items()}
    return list(make_blocks(checkpoints, make_groups(checkpoints, targets, frozenset(), sample), nbytes))


def pieces_of(block: Block) -> list[tuple[str, int, int]]:
    """Return name, first element and number of elements of each piece."""
    return [(piece.group.names[0], piece.start, piece.count) for piece in block.pieces]


def test_small_tensors_of_one_dtype_share_a_block_and_large_ones_are_cut():
    """A block holds as many elements as fit in the type of the sum; another dtype begins another block."""
    tensors = {"a": torch.ones(3), "b": torch.ones(7), "c": torch.ones(4).bfloat16(), "d": torch.ones(2)}
    blocks = blocks_of([checkpoint(tensors)] * 2, nbytes=8 * 4)
    assert [pieces_of(block) for block in blocks] == [
        [("a", 0, 3), ("b", 0, 5)], [("b", 5, 2)], [("c", 0, 4)], [("d", 0, 2)],
    ]  # fmt: skip
    assert [block.count for block in blocks] == [8, 2, 4, 2]


def test_an_element_of_a_block_is_found_in_its_tensor():
    """Positions in a block lead back to the tensor, and to the element there."""
    tensors = {"a": torch.ones(3), "b": torch.ones(7)}
    first, second = blocks_of([checkpoint(tensors)] * 2, nbytes=8 * 4)
    assert [first.find(element) for element in (0, 2, 3, 7)] == [("a", 0), ("a", 2), ("b", 0), ("b", 4)]
    assert second.find(0) == ("b", 5)
    assert first.names_of(torch.tensor([1, 2]).numpy()) == {"a"}
    assert first.names_of(torch.tensor([2, 3]).numpy()) == {"a", "b"}


def test_averaged_tensors_are_read_from_all_checkpoints_and_others_from_the_newest():
    """What will be read is known from specs: with several averages, others are read from the newest of each."""
    checkpoints = [checkpoint({"w": torch.ones(5), "n": torch.tensor([1, 2])}) for _ in range(3)]
    targets = {name: spec.dtype for name, spec in checkpoints[0].tensors.specs.items()}

    def total(newest: list[int]) -> int:
        return bytes_to_read(checkpoints, make_groups(checkpoints, targets, frozenset()), newest)

    assert total([2]) == 3 * 5 * 4 + 2 * 8
    assert total([2, 0]) == 3 * 5 * 4 + 2 * 2 * 8


def test_only_a_sample_of_each_tensor_is_folded_on_request():
    """A sample takes its stretches of a long tensor, and all of a short one; what is read is what it takes."""
    tensors = {"a": torch.ones(70_001), "b": torch.ones(3)}
    checkpoints, sample = [checkpoint(tensors)] * 2, Sample("s")
    pieces = [piece for block in blocks_of(checkpoints, 1 << 20, sample) for piece in pieces_of(block)]
    assert pieces == [*(("a", *stretch) for stretch in sample.ranges("a", 70_001)), ("b", 0, 3)]
    targets = {name: spec.dtype for name, spec in checkpoints[0].tensors.specs.items()}
    groups = make_groups(checkpoints, targets, frozenset(), sample)
    assert bytes_to_read(checkpoints, groups, [1]) == 2 * 4 * sum(count for _, _, count in pieces)


def test_a_block_of_small_tensors_is_bounded():
    """Each piece takes memory of its own: ten thousand scalars are several blocks, whatever room a block has."""
    saved = {f"scalar.{number}": torch.tensor(float(number)) for number in range(10_000)}
    blocks = blocks_of([checkpoint(saved)] * 2, nbytes=1 << 30)
    assert max(len(block.pieces) for block in blocks) <= 4096
    assert [name for block in blocks for name, _, _ in pieces_of(block)] == list(saved)
