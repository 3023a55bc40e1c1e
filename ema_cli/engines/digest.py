"""The digest of an averaging: equal where all that decides the bytes of its tensor files is equal, on any machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ema_cli.engines.work import versions
from ema_cli.job import Job


def decided(job: Job, fingerprints: Sequence[str], *, checksum: bool) -> dict[str, Any]:
    """Return all that decides what is to be done, as data.

    Args:
        job: the averaging.
        fingerprints: those of its checkpoints.
        checksum: whether all that is read is summed up, too.
    """
    return {
        "versions": versions(),
        "checkpoints": [
            [checkpoint.name, fingerprint, [file.identity.parts[-2:] for file in checkpoint.files]]
            for checkpoint, fingerprint in zip(job.checkpoints, fingerprints, strict=True)
        ],
        "weights": job.weights,
        "copied": sorted(job.copied),
        "options": job.options.to_dict(),
        "manifest": job.manifest,
        "checksum": checksum,
        "outputs": [
            [
                [file.name, file.size, hashlib.sha256(file.header).hexdigest(), list(file.table.specs)]
                for file in output.files
            ]
            for output in job.outputs
        ],
    }


def digest_of(said: object) -> str:
    """Return the digest of data, as of what decides an averaging."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode(errors="surrogatepass")).hexdigest()


def alike_in_all(said: Mapping[str, Any]) -> dict[str, str]:
    """Return what all parts of an averaging need alike, for people: versions, and digests of all else by its name."""
    own = {"checkpoints": ("checkpoints",), "weights": ("weights", "copied")}
    rest = tuple(name for name in said if name not in ("versions", "checkpoints", "weights", "copied"))
    digests = {name: digest_of([said[key] for key in keys]) for name, keys in (own | {"options": rest}).items()}
    return {**said["versions"], **digests}
