"""What became of a task: sums, sizes, what is not finite; kept beside the files, so that nobody does it twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.engines.tasks import Task
from ema_cli.storage.begun_parts import record_name
from ema_cli.storage.lease import this_machine
from ema_cli.storage.names import StorePath
from ema_cli.storage.small_file import write_small_file

BlockSum = tuple[int, bool, int, str]
"""Checkpoint, whether it is of its copied bytes, block, sha256."""


@dataclass(frozen=True, slots=True)
class Done:
    """A task that is done.

    Attributes:
        number: that of the task.
        digest: that of the averaging.
        worker: who did it, for people.
        kernel: what did the arithmetic there.
        seconds: how long it took.
        bytes_read: of tensors.
        sums: of each output, the sha256 of each of its files, or the CRC-32 of its stretch of one; empty where none is
            wanted.
        let_through, infinite: of each average, the names of tensors that are not finite; see `NonFinite`.
        blocks: sums of what was read.
        memory_of: the machine, since its last start, in whose memory files may be that have no sums; empty where the
            disk has them, or sums tell.
    """

    number: int
    digest: str
    worker: str
    kernel: str
    seconds: float
    bytes_read: int
    sums: list[list[str]]
    let_through: list[list[str]]
    infinite: list[list[str]]
    blocks: list[BlockSum]
    memory_of: str = ""


def write_done(folder: Path, done: Done) -> None:
    """Keep what became of a task.

    Raises:
        OutputError: where it cannot be written.
    """
    text = json.dumps(asdict(done))
    write_small_file(_path(folder, done.number), f"{_sum_of(text)}\n{text}")


def read_done(folder: Path, task: Task, digest: str) -> Done | None:
    """Return what became of a task of the averaging, None where nothing is known, or what is there is not whole.

    What it says goes into a manifest, and not all of it can be read from the files: so it has a sum.
    """
    try:
        checked, _, text = _read(_path(folder, task.number)).partition("\n")
        if checked != _sum_of(text):
            return None
        data = json.loads(text)
        done = Done(**{**data, "blocks": [tuple(block) for block in data["blocks"]]})
        is_whole = [len(sums) for sums in done.sums] == [len(numbers) for numbers in task.files]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    is_kept = done.memory_of in ("", this_machine())
    return done if is_whole and is_kept and done.number == task.number and done.digest == digest else None


def _sum_of(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _read(path: Path) -> str:
    if isinstance(path, StorePath):
        from ema_cli.storage.store.contents import read_text  # which only those need who write to a store

        return read_text(path) or ""
    return path.read_text()


def is_done(names: Collection[str], task: Task) -> bool:
    """Return whether something is known of a task, by the names in the folder in which that is kept."""
    return record_name(task.number) in names


def _path(folder: Path, number: int) -> Path:
    return folder / record_name(number)
