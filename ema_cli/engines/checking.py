"""Look whether what a task made is still there, by its sums."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from ema_cli.engines.tasks import Step, Task
from ema_cli.engines.work import Work
from ema_cli.errors import EmaError
from ema_cli.storage.checksums import Crc32, Digest
from ema_cli.storage.location import location, look_anew
from ema_cli.storage.source import ByteSource

_READ_BYTES = 1 << 20


def is_there(work: Work, task: Task, sums: Sequence[Sequence[str]]) -> bool:
    """Return whether the files of a task, or its stretches of them, are there with these sums, if they have any."""
    for output, folder, expected in zip(task.select(work.outputs), work.folders, sums, strict=True):
        for file, known in zip(output.files, expected, strict=True):
            begin, end, checksum = 0, file.size, Crc32() if task.step is Step.STRETCH else sha256()
            if task.step is Step.STRETCH:
                begin, end = file.header_size + task.begin, file.header_size + task.end
            try:
                look_anew([folder])
                there = location(folder / file.name).open()
                if there.size < end or (task.step is not Step.STRETCH and there.size != end):
                    return False
                if known and _sum_of(there, begin, end, checksum) != known:
                    return False
            except EmaError:
                return False
    return True


def _sum_of(file: ByteSource, begin: int, end: int, checksum: Digest) -> str:
    for at in range(begin, end, _READ_BYTES):
        checksum.update(file.read(at, min(_READ_BYTES, end - at)))
    return checksum.hexdigest()
