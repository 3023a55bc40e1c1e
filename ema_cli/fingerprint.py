"""What tells an input again: a cheap fingerprint of each, and on request the sha256 of all that is read of it.

No numpy. A fingerprint is the sha256 of the names, dtypes and shapes of all tensors, by name, and of sample blocks of
their bytes. It tells another checkpoint, another run and most damage; it does not prove that every byte is the same.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ema_cli.checkpoint import Checkpoint, TensorSpec

SAMPLES = 16
SAMPLE_BYTES = 4096
BLOCK_BYTES = 16 << 20
FINGERPRINT: Mapping[str, Any] = {
    "what": "sha256 over names, dtypes and shapes of all tensors, by name, and over sample blocks of their bytes, "
    "at equal distances: not over all of them",
    "samples": SAMPLES,
    "sample_bytes": SAMPLE_BYTES,
}
CHECKSUM: Mapping[str, Any] = {
    "what": "sha256 of each block of the bytes that were read of an input, tensor after tensor as the output has them: "
    "of the averaged ones, then, of the newest input, of the copied ones",
    "block_bytes": BLOCK_BYTES,
}


def fingerprints(checkpoints: Sequence[Checkpoint], threads: int) -> list[str]:
    """Return the fingerprint of each checkpoint; `threads` read side by side, for disks that let one wait.

    Raises:
        CheckpointError: where one cannot be read.
    """
    tables = {id(each.weights.specs): _Samples(each.weights.specs) for each in checkpoints}

    def fingerprint(checkpoint: Checkpoint) -> str:
        return tables[id(checkpoint.weights.specs)].fingerprint(checkpoint)

    with ThreadPoolExecutor(threads, "fingerprint") as pool:
        return list(pool.map(fingerprint, checkpoints))


class _Samples:
    """Where the sample blocks lie in checkpoints with these specs."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.head = hashlib.sha256()
        self.blocks: list[tuple[str, int, int]] = []  # tensor, first byte, size
        total = sum(spec.nbytes for spec in specs.values())
        wanted = [(2 * number + 1) * total // (2 * SAMPLES) for number in range(SAMPLES)] if total else []
        position = 0
        for name in sorted(specs):
            spec = specs[name]
            self.head.update(f"{name}\0{spec}\n".encode())
            end = 0  # of what is sampled of this tensor: small ones are read once, whole
            while wanted and wanted[0] < position + spec.nbytes:
                start = max((wanted.pop(0) - position) // spec.dtype.itemsize * spec.dtype.itemsize, end)
                end = max(end, min(start + SAMPLE_BYTES, spec.nbytes))
                if start < end:
                    self.blocks.append((name, start, end - start))
            position += spec.nbytes

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        digest = self.head.copy()
        for name, start, size in self.blocks:
            data = bytearray(size)
            checkpoint.weights.read_into(name, start, memoryview(data))
            digest.update(data)
        return digest.hexdigest()


class Checksums:
    """The sha256 of each 16 MiB of what is read of each checkpoint, made while it is read, by several threads.

    What is read has numbers: 0, 1, ... for each checkpoint. A thread that is early waits for its turn, so that the
    sums depend on no number of threads. Whoever takes a number must `add` or `skip` it, or `stop` all. What is copied
    and what is averaged are streams of their own: which checkpoints are copied from, depends on what else is made.
    """

    def __init__(self, count: int) -> None:
        self._next = [0] * count
        self._averaged = [_Stream() for _ in range(count)]
        self._copied = [_Stream() for _ in range(count)]
        self._turn = threading.Condition()
        self._stopped = False

    def add(self, checkpoint: int, number: int, data: memoryview, *, copied: bool = False) -> None:
        """Take in what was read as the `number`-th of a checkpoint."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._next[checkpoint] == number)
            if self._stopped:
                return
        # Nobody else has its turn until the next is called.
        (self._copied if copied else self._averaged)[checkpoint].update(data)
        with self._turn:
            self._next[checkpoint] += 1
            self._turn.notify_all()

    def skip(self, checkpoint: int, number: int) -> None:
        """Say that of this checkpoint the `number`-th is not read."""
        self.add(checkpoint, number, memoryview(b""))

    def stop(self) -> None:
        """Let go all that wait: one of the others has failed."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def blocks(self, checkpoint: int, *, newest: bool) -> list[str]:
        """Return the sums when all is read: of what was averaged, then, of the `newest`, of what was copied."""
        copied = self._copied[checkpoint].all() if newest else []
        return [*self._averaged[checkpoint].all(), *copied]


class _Stream:
    """The sums of the blocks of one stream of bytes."""

    def __init__(self) -> None:
        self._room = BLOCK_BYTES
        self._sha256 = hashlib.sha256()
        self._done: list[str] = []

    def update(self, data: memoryview) -> None:
        while len(data):
            part = data[: self._room]
            self._sha256.update(part)
            self._room -= len(part)
            data = data[len(part) :]
            if not self._room:
                self._done.append(self._sha256.hexdigest())
                self._sha256, self._room = hashlib.sha256(), BLOCK_BYTES

    def all(self) -> list[str]:
        rest = [self._sha256.hexdigest()] if self._room < BLOCK_BYTES else []
        return [*self._done, *rest]
