"""Compare whole what several ranks saved of a checkpoint, where an average reads the first rank's alone.

This reads all that ranks have more than once. Opening a checkpoint compares samples, or checksums that the files hold:
neither shows every difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.storage.replicas import Replicas, differing_buffers, differs
from ema_cli.system.threads import reading_pool

_STEP = 1 << 19  # bytes; each thread holds two such blocks
_BATCH = 1024  # tensors that are handed to the threads at once


def check_replicas(checkpoints: Sequence[Checkpoint], threads: int) -> list[tuple[str, Checkpoint]]:
    """Compare every byte of what ranks have more than once.

    Args:
        checkpoints: those that are read.
        threads: how many to compare with.

    Returns:
        A warning of each checkpoint with buffers that differ, which are the first rank's, unless it has that already.

    Raises:
        CheckpointError: naming a file and a tensor that differs there and must not.
    """
    warnings = []
    with reading_pool(threads, "replicas") as pool:
        for checkpoint in checkpoints:
            buffers = dict.fromkeys(_buffers_that_differ(checkpoint, pool))
            text = differing_buffers(list(buffers))
            if buffers and text not in checkpoint.warnings:
                warnings.append((text, checkpoint))
    return warnings


def _buffers_that_differ(checkpoint: Checkpoint, pool: ThreadPoolExecutor) -> Iterator[str]:
    """Yield the buffers of which a rank has other bytes than the first; raise as `check_replicas`."""
    replicas = iter(checkpoint.replicas())
    while batch := list(islice(replicas, _BATCH)):
        for one, other in zip(batch, pool.map(_first_that_differs, batch), strict=True):
            if other is not None and one.hint is not None:
                raise differs(one.tensor, one.each[0].path, other, one.hint)
            if other is not None:
                yield one.tensor


def _first_that_differs(replicas: Replicas) -> Path | None:
    """Return the file of the first that is not as the first of all; None where all are equal."""
    first, *others = replicas.each
    for start in range(0, replicas.nbytes, _STEP):
        size = min(_STEP, replicas.nbytes - start)
        block, again = bytearray(size), bytearray(size)
        first.read_into(start, memoryview(block))
        for other in others:
            other.read_into(start, memoryview(again))
            if again != block:
                return other.path
    return None
