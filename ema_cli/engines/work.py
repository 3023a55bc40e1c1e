"""What all tasks of an averaging have in common, as data that travels: checkpoints, weights, outputs, places."""

from __future__ import annotations

import pickle
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ema_cli._version import __version__
from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.folding.buffers import BufferSizes
from ema_cli.job import Job
from ema_cli.manifest.libraries import library_versions
from ema_cli.writing.outputs import Output


@dataclass(frozen=True, slots=True)
class Work:
    """One averaging, for those who do its tasks.

    Attributes:
        digest: tells it from every other.
        checkpoints: those that are read, the oldest first, with all names of the newest.
        weights: of each average, one for each checkpoint.
        newest: of each average, the number of its newest checkpoint.
        outputs: their tensor files.
        folders: where the files of each output are made.
        copied: names of tensors that are copied, though they could be averaged.
        allow_non_finite: whether NaN and infinity are let through.
        summed: whether the files are summed up.
        checksum: whether all that is read is summed up, too.
        synced: whether who writes a stretch waits until the disk has it; else the one who asks does, in the end.
        sizes: threads and memory for one task.
        segments: of large files, kept by a task until they are whole; 0 where none are.
        tasks: the folder in which tasks tell of themselves.
        lease: that of the one for whom the work is done, its owner, and the seconds after which it is old; None where
            the one who works is the owner.
    """

    digest: str
    checkpoints: Sequence[Checkpoint]
    weights: Sequence[Sequence[float]]
    newest: Sequence[int]
    outputs: Sequence[Output]
    folders: Sequence[Path]
    copied: frozenset[str]
    allow_non_finite: bool
    summed: bool
    checksum: bool
    synced: bool
    sizes: BufferSizes
    segments: int
    tasks: Path
    lease: tuple[Path, str, float] | None

    @classmethod
    def of(cls, job: Job, sizes: BufferSizes, *, checksum: bool) -> Work:
        """Return a job as work whose files are not written: to be compared with what is there.

        Args:
            job: the averages.
            sizes: threads and memory of one task.
            checksum: whether all that is read is summed up.
        """
        return cls(
            digest="",
            checkpoints=job.tied,
            weights=job.weights,
            newest=[job.checkpoints.index(plan.newest) for plan in job.plans],
            outputs=job.outputs,
            folders=[],
            copied=job.copied,
            allow_non_finite=job.options.allow_non_finite,
            summed=False,
            checksum=checksum,
            synced=False,
            sizes=sizes,
            segments=0,
            tasks=Path(),
            lease=None,
        )


def pack(work: Work, *more: object) -> bytes:
    """Return the work as bytes, for workers, and what else they need."""
    outputs = [_travelling(output) for output in work.outputs]
    return zlib.compress(pickle.dumps((replace(work, outputs=outputs), *more), protocol=5), 1)


_opened: tuple[bytes, tuple[Any, ...]] | None = None
_opening = threading.Lock()


def unpack(packed: bytes) -> tuple[Any, ...]:
    """Return the work and the rest that `pack` made bytes of; the last are kept, as their tasks follow each other."""
    global _opened
    with _opening:
        if _opened is None or _opened[0] != packed:
            _opened = packed, pickle.loads(zlib.decompress(packed))
        return _opened[1]


def _travelling(output: Output) -> Output:
    """Return an output that can travel: what says where tensors go is found again by who needs it."""
    likeness = output.likeness
    if likeness is not None:
        likeness = replace(likeness, pieces=dict.fromkeys(likeness.pieces, ()))
    return Output(output.target, output.files, originals=output.originals, likeness=likeness)


def versions() -> dict[str, str]:
    """Return the versions that decide bytes: all who work on one average must have the same."""
    return {"ema-cli": __version__, "numpy": library_versions()["numpy"]}


def check_versions(wanted: Mapping[str, str], worker: str) -> None:
    """Check that this process has the versions of the one for whom it works.

    Raises:
        UsageError: naming both versions.
    """
    own = versions()
    for name, version in wanted.items():
        if own.get(name) != version:
            raise UsageError(
                f"has {name} {own.get(name)}, and the one who asks {version}",
                subject=f"worker {worker}",
                hint=f"install the same on all: pip install {name}=={version}",
            )
