"""Whether an average is what its manifest and its sums say: every file, every tensor, every number. Nothing is written.

What does not hold is told as problems, all of them; only what cannot be looked at is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ema_cli.manifest import Manifest
from ema_cli.published import Published
from ema_cli.verify_checks import Checks, Report


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one average: how much of it was looked at, and what does not hold, in an order of its own."""

    published: Published
    files: int
    tensors: int
    nbytes: int
    problems: tuple[str, ...]
    manifest: Manifest | None


def verify(published: Published, *, threads: int = 1, report: Report = lambda done, total: None) -> Verified:
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
    nbytes = sum(file.size for file in checks.files.values())
    problems = tuple(checks.problems)
    return Verified(published, len(checks.files), len(checks.tensors), nbytes, problems, checks.manifest)


def verified_facts(found: Verified) -> dict[str, Any]:
    """Return what was found of an average as plain data."""
    return {
        "path": found.published.path.as_posix(),
        "ok": not found.problems,
        "files": found.files,
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "problems": list(found.problems),
        "against": None,
    }
