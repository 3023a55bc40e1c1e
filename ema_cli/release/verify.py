"""Whether an average is what its manifest and its sums say: every file, every tensor, every number. Nothing is written.

What does not hold is told as problems, all of them; only what cannot be looked at is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.manifest.manifest import Manifest
from ema_cli.release.checks import Checks
from ema_cli.release.published import Published
from ema_cli.storage.source import InputFile
from ema_cli.system.progress import ProgressCallback, no_progress


@dataclass(frozen=True, slots=True)
class Against:
    """What an average was compared with: all of what so many checkpoints give, or `most_elements` of each tensor."""

    checkpoints: int
    tensors: int
    most_elements: int | None
    bytes_read: int
    tensors_different: int
    bytes_different: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one average: how much of it was looked at, and what does not hold, in an order of its own.

    `weights` are its files of tensors, opened; `whole`: all that are listed. `inputs` are all files that were read.
    """

    published: Published
    files: int
    tensors: int
    nbytes: int
    problems: tuple[str, ...]
    manifest: Manifest | None
    weights: Mapping[str, Checkpoint]
    whole: bool
    inputs: Sequence[InputFile]
    against: Against | None = None


def verify(published: Published, *, threads: int = 1, report: ProgressCallback = no_progress) -> Verified:
    """Return how much there is of an average, and what does not hold of it.

    `report(done, total)` is told the bytes that have been read.

    Raises:
        CheckpointError: where a file, or a folder, cannot be read by this process, or changes meanwhile.
    """
    checks = Checks(published)
    if published.vouched:
        checks.run(threads, report)
    else:
        checks.say(
            "" if published.is_folder else published.path.name,
            f"has neither a manifest ({published.manifest.name}) nor sums ({published.sums.name}), which say what it "
            "must be; average again, without --no-manifest",
        )
    files = tuple(checks.files.values())
    return Verified(
        published,
        len(files),
        len(checks.tensors),
        sum(file.size for file in files),
        tuple(checks.problems),
        checks.manifest,
        checks.weights,
        not checks.unopened,
        files,
    )


def verified_facts(found: Verified) -> dict[str, Any]:
    """Return what was found of an average as plain data."""
    return {
        "path": found.published.path.as_posix(),
        "ok": not found.problems,
        "files": found.files,
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "problems": list(found.problems),
        "against": asdict(found.against) if found.against is not None else None,
    }
