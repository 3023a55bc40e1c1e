"""The digest of an averaging: equal where all that decides the bytes of its tensor files is equal, on any machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from ema_cli.engines.work import versions
from ema_cli.job import Job


def digest_of(job: Job, fingerprints: Sequence[str], *, checksum: bool) -> str:
    """Return the digest of what is to be done.

    Args:
        job: the averaging.
        fingerprints: those of its checkpoints.
        checksum: whether all that is read is summed up, too.
    """
    said = {
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
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode(errors="surrogatepass")).hexdigest()
