"""How much is done at once: the buffers of a job, and its passes where more averages are made than fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.folding.buffers import BufferSizes, arrival, default_bytes, divide_memory, in_store, least_bytes
from ema_cli.formats.arrays.reader import keep_blocks, memory_of_blocks
from ema_cli.job import Job
from ema_cli.storage.names import StorePath
from ema_cli.storage.segments import SEGMENT_BYTES
from ema_cli.system.memory import peak_bytes
from ema_cli.system.processors import default_threads
from ema_cli.text import size
from ema_cli.writing.files import most_open_files
from ema_cli.writing.open_files import goes_past_cache

_RESERVED_BYTES = 32 << 20  # of --max-memory, for all that is no buffer: half of it for numpy, if that has to be loaded
_RESERVED_BYTES_PER_TENSOR = 1 << 10  # for the tables of the output, as it is laid out and as it is read back
_MOST_SENT = 8  # averages that are sent to a store at once where the user does not say how much memory there is
_LEAST_BUFFER_BYTES = 2 << 20
_SEGMENTS_OF_ONE = 8  # large average: what several threads make, and what waits for the disk
_LEAST_SEGMENTS_OF_ONE = 2
_MOST_SEGMENTS = 32


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of the checkpoints: the averages that are made of it, as a job, and its buffers.

    Attributes:
        segments: of large outputs, which are kept until they are whole; 0 where none are.
    """

    job: Job
    sizes: BufferSizes
    segments: int = 0

    @property
    def memory(self) -> int:
        """Return about how many bytes of memory the process will take."""
        workers = self.sizes.most_workers if self.sizes.waits else self.sizes.threads
        buffers = workers * self.sizes.worker_bytes(len(self.job.plans), self.job.newest)
        buffers = max(buffers, self.job.bytes_to_factor)  # one after the other
        tables = len(self.job.tensors) * _RESERVED_BYTES_PER_TENSOR
        sending = self.job.bytes_sending(len(self.job.plans))
        kept = sending + self.segments * SEGMENT_BYTES
        return peak_bytes() + buffers + tables + memory_of_blocks(self.job.checkpoints) + kept


def plan_passes(job: Job, threads: int | None, max_memory: int | None) -> list[Pass]:
    """Return the passes of a job: one, as long as the buffers of all averages fit; else as few as possible.

    Averages that are neighbours share a pass: those of a series whose end is early read little.

    Args:
        job: what is to be done.
        threads: how many; None for the default.
        max_memory: the most for the process, in bytes; None for the default.

    Raises:
        UsageError: where `max_memory` is too little for a single average.
    """
    budget = _budget(job, max_memory)
    count, most = len(job.plans), 1
    while most < count and _least(job, most + 1) <= budget and _open_files(job, most + 1) <= most_open_files():
        most += 1
    number = -(-count // most)
    ends = [count * each // number for each in range(number + 1)]
    jobs = [job] if number == 1 else [job.of_averages(*both) for both in pairwise(ends)]
    return [_divided(each, budget, threads) for each in jobs]


def keep_more_blocks(passes: Sequence[Pass], max_memory: int) -> None:
    """Give what the buffers leave of `max_memory` to decompressed blocks of arrays."""
    needed = max(each.memory for each in passes)
    keep_blocks(passes[-1].job.checkpoints, max(0, max_memory - _RESERVED_BYTES - needed))


def _least(job: Job, averages: int) -> int:
    """Return the smallest buffers for so many averages of a job at once, and what is sent of them."""
    least = max(least_bytes(averages, min(averages, job.newest)), _LEAST_BUFFER_BYTES, job.bytes_to_factor)
    return least + job.bytes_sending(averages)


def _open_files(job: Job, averages: int) -> int:
    return averages * max(len(output.files) for output in job.outputs)


def _budget(job: Job, max_memory: int | None) -> int:
    """Return the memory for the buffers of all threads, and for what is sent to a store."""
    least = _least(job, 1)
    sending = job.bytes_sending(min(len(job.plans), _MOST_SENT))
    budget = max(default_bytes(job.checkpoints) + sending + _most_segments(job) * SEGMENT_BYTES, least)
    if max_memory is None:
        return budget
    blocks = memory_of_blocks(job.checkpoints)
    taken = peak_bytes() + _RESERVED_BYTES + len(job.tensors) * _RESERVED_BYTES_PER_TENSOR + blocks
    budget = max_memory - taken if not blocks else min(budget, max_memory - taken)  # the rest keeps blocks
    if budget < least:
        needed = -(-(taken + least) // 10**6)
        raise UsageError(
            f"{size(max_memory)} are too few; this average needs {needed} MB",
            option="max_memory",
            hint=option("max_memory", f"{needed}MB") + _smaller_shards(job, budget - least),
        )
    return budget


def _smaller_shards(job: Job, short: int) -> str:
    """Return a hint at the size of shards that would fit, where what is sent to a store takes the memory.

    Args:
        job: what is to be done.
        short: how many bytes are there more than are needed: a negative number.
    """
    if not job.is_sent or not all(output.target.is_folder and not output.target.is_dcp for output in job.outputs):
        return ""
    from ema_cli.storage.store.store_stream import shard_that_fits

    fitting = shard_that_fits(sum(file.size for file in job.outputs[0].files), job.bytes_sending(1) + short)
    return "" if fitting is None else f", or {option('max_shard_size', f'{fitting // 10**6}MB')}"


def _divided(job: Job, budget: int, threads: int | None) -> Pass:
    """Return a pass with buffers that keep the threads at work, and with segments of what is written."""
    from_store = len(job.checkpoints) if in_store(job.checkpoints) else 0
    budget -= job.bytes_sending(len(job.plans))
    segments = _segments(job, budget)
    budget -= segments * SEGMENT_BYTES
    sizes = divide_memory(
        budget,
        threads or default_threads(),
        len(job.plans),
        job.newest,
        from_store=from_store,
        arrives=arrival(job.checkpoints),
    )
    # What is sent is sent in its order.
    return Pass(job, replace(sizes, window=0) if job.is_sent else sizes, segments)


def _most_segments(job: Job) -> int:
    """Return how many segments of large files are of use; 0 where none are written to a disk.

    A file that is written past the page cache is open twice.
    """
    if isinstance(job.target.path, StorePath) or 2 * _open_files(job, len(job.plans)) > most_open_files():
        return 0
    large = sum(any(map(goes_past_cache, output.files)) for output in job.outputs)
    return min(large * _SEGMENTS_OF_ONE, _MOST_SEGMENTS)


def _segments(job: Job, budget: int) -> int:
    """Return how many segments are kept within a budget, which is for the buffers first; 0 where they would be few."""
    room = min(budget // 4, budget - _least(job, len(job.plans))) // SEGMENT_BYTES
    most = min(_most_segments(job), room)
    return most if most >= len(job.plans) * _LEAST_SEGMENTS_OF_ONE else 0
