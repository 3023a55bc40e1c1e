"""Identify inputs: a sampled fingerprint, and optionally SHA-256 sums of all bytes read.

No numpy. A fingerprint is the sha256 of the names, dtypes and shapes of all tensors, by name, and of sample blocks of
their bytes. It detects another checkpoint, another run and most damage; it does not prove that every byte is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.manifest.types import ChecksumKind, FingerprintKind
from ema_cli.storage.checksums import BLOCK_BYTES
from ema_cli.storage.names import StorePath
from ema_cli.system.threads import reading_pool

SAMPLES = 16
SAMPLE_BYTES = 4096
_THREADS_IN_STORE = 32  # that wait for a request each
FINGERPRINT: FingerprintKind = {
    "what": "sha256 over names, dtypes and shapes of all tensors, by name, and over sample blocks of their bytes, "
    "at equal distances: not over all of them",
    "samples": SAMPLES,
    "sample_bytes": SAMPLE_BYTES,
}
CHECKSUM: ChecksumKind = {
    "what": "sha256 of each block of the bytes that were read of an input, tensor after tensor as the output has them: "
    "of the averaged ones, then, of the newest input, of the copied ones",
    "block_bytes": BLOCK_BYTES,
}


Watch = Callable[[Checkpoint, str, int, bytearray], None]
"""Is given each block that is read: the checkpoint, the tensor, the first byte, and the bytes. Several threads call."""


def fingerprints(checkpoints: Sequence[Checkpoint], threads: int, watch: Watch | None = None) -> list[str]:
    """Return the fingerprint of each checkpoint.

    Args:
        checkpoints: the checkpoints.
        threads: how many read at the same time, as a disk makes each wait.
        watch: looks at what is read.

    Raises:
        CheckpointError: if one cannot be read.
    """
    distinct = {id(checkpoint.tensors.specs): checkpoint.tensors.specs for checkpoint in checkpoints}
    tables = {key: _Samples(specs) for key, specs in distinct.items()}

    def fingerprint(checkpoint: Checkpoint) -> str:
        return tables[id(checkpoint.tensors.specs)].fingerprint(checkpoint, watch)

    if any(isinstance(checkpoint.path, StorePath) for checkpoint in checkpoints):
        threads = max(threads, _THREADS_IN_STORE)
    with reading_pool(threads, "fingerprint") as pool:
        return list(pool.map(fingerprint, checkpoints))


class _Samples:
    """The places of the sample blocks in checkpoints with these specs."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.head = hashlib.sha256()
        self.blocks: list[tuple[str, int, int]] = []  # tensor, first byte, size
        total = sum(spec.nbytes for spec in specs.values())
        wanted = [(2 * number + 1) * total // (2 * SAMPLES) for number in range(SAMPLES)] if total else []
        position = 0
        for name in sorted(specs):
            spec = specs[name]
            self.head.update(f"{name}\0{spec}\n".encode())
            end = 0  # of the last block in this tensor: a small tensor is read once, whole
            while wanted and wanted[0] < position + spec.nbytes:
                start = max((wanted.pop(0) - position) // spec.dtype.itemsize * spec.dtype.itemsize, end)
                end = max(end, min(start + SAMPLE_BYTES, spec.nbytes))
                if start < end:
                    self.blocks.append((name, start, end - start))
            position += spec.nbytes

    def fingerprint(self, checkpoint: Checkpoint, watch: Watch | None) -> str:
        digest = self.head.copy()
        for name, start, size in self.blocks:
            data = bytearray(size)
            checkpoint.tensors.read_into(name, start, memoryview(data))
            digest.update(data)
            if watch is not None:
                watch(checkpoint, name, start, data)
        return digest.hexdigest()
