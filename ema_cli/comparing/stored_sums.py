"""Check what is read against the checksums that files of torch.save hold: a CRC-32 of each record.

This reads the weights once more than an average does. Summing them up takes half as much processor time as averaging.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from itertools import islice

from ema_cli.checkpoint import Checkpoint, StoredRecord
from ema_cli.errors import CheckpointError, option
from ema_cli.system.threads import reading_pool

_STEP = 1 << 20
_BATCH = 1024  # records that are handed to the threads at once


def check_stored_sums(checkpoints: Sequence[Checkpoint], threads: int, *, replaceable: bool = False) -> list[str]:
    """Check the bytes of all tensors against the checksums that the files hold of them.

    Args:
        checkpoints: those that are read.
        threads: how many to sum up with.
        replaceable: whether the user may leave out a checkpoint.

    Returns:
        A note on files whose writer was told to write no checksums: nothing shows damage to their bytes.

    Raises:
        CheckpointError: naming a tensor whose bytes have another sum.
    """
    with reading_pool(threads, "checksum") as pool:
        without = [
            checkpoint.name for checkpoint in checkpoints if not _check(checkpoint, pool, replaceable=replaceable)
        ]
    if not without:
        return []
    more = f" and {len(without) - 1} more" if len(without) > 1 else ""
    return [f"{without[0]}{more}: no checksums were written, as torch does unless told not to: damage would not show"]


def _check(checkpoint: Checkpoint, pool: ThreadPoolExecutor, *, replaceable: bool) -> bool:
    """Check the records of a checkpoint; return whether each has a checksum."""
    complete, records = True, checkpoint.tensors.stored_records()
    leave = f", or leave it out: {option('exclude', escape(checkpoint.name))}" if replaceable else ""
    while batch := list(islice(records, _BATCH)):
        with_sums = [record for record in batch if record.checksum]
        complete = complete and len(with_sums) == len(batch)
        for record, checksum in zip(with_sums, pool.map(_sum, with_sums), strict=True):
            if checksum != record.checksum:
                raise CheckpointError(
                    f"'{record.tensor}' is damaged: its bytes have the checksum {checksum:08x}, "
                    f"but {record.checksum:08x} was written with them",
                    subject=record.source.path,
                    hint=f"bring back the file as it was saved{leave}",
                )
    return complete


def _sum(record: StoredRecord) -> int:
    checksum, buffer = 0, memoryview(bytearray(min(_STEP, record.size)))
    for start in range(0, record.size, _STEP):
        part = buffer[: min(_STEP, record.size - start)]
        record.source.read_into(record.start + start, part)
        checksum = zlib.crc32(part, checksum)
    return checksum
