"""The blocks of a fold are handed out in stretches: long ones to save requests, short ones so that all have work."""

from __future__ import annotations

from ema_cli.dtypes import DTYPES
from ema_cli.folding.block_task import BlockTask
from ema_cli.folding.blocks import Block
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.kernel import WeightTable
from ema_cli.folding.stretches import Stretches

BLOCK = Block((), 0, (DTYPES["F32"],), DTYPES["F32"], averaged=True)
WEIGHTS = WeightTable.of([[0.5, 0.5]])
BLOCK_BYTES = 1000  # of each of two checkpoints


def stretches_of(blocks: int, threads: int, *, stretch: int = 2, most: int = 16) -> Stretches:
    """Return so many blocks, for so many threads."""
    sizes = BufferSizes(threads, threads, 2, 2 * BLOCK_BYTES, BLOCK_BYTES, stretch=stretch, most_stretch=most)
    tasks = (BlockTask(number, BLOCK, WEIGHTS, 2) for number in range(blocks))
    stretches = Stretches(tasks, sizes, 2, blocks * 2 * BLOCK_BYTES)
    stretches.threads = threads
    return stretches


def test_a_stretch_is_twice_as_long_as_the_one_before_until_little_is_left():
    """Up to the most that one may have; in the end none has more than its share, nor less than the least."""
    stretches = stretches_of(100, threads=1)
    lengths = []
    while tasks := stretches.take():
        lengths.append(len(tasks))
    assert lengths[:4] == [2, 4, 8, 16]
    assert max(lengths) == 16
    assert sum(lengths) == 100


def test_several_threads_share_what_is_left():
    """Of 16 blocks four threads get two each at least: the first does not take all."""
    stretches = stretches_of(16, threads=4)
    taken = [stretches.take() for _ in range(8)]
    assert [len(tasks) for tasks in taken] == [2] * 8
    assert [task.number for tasks in taken for task in tasks] == list(range(16))
    assert stretches.take() == []


def test_surplus_threads_end_and_the_blocks_are_for_the_others():
    """So many get none when they come for more, though blocks are left."""
    stretches = stretches_of(6, threads=3, stretch=1, most=1)
    stretches.end(2)
    assert [len(stretches.take()) for _ in range(4)] == [0, 0, 1, 1]
