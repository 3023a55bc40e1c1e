"""Compare the beginnings of tensors: a difference is sure, equality is likely, and either is seen at once."""

from __future__ import annotations

from ema_cli.checkpoint import Checkpoint

_BYTES = 4096  # of each tensor


def begin_alike(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    """Return whether both have the tensor `name` with one spec and the same first bytes."""
    spec = one.tensors.specs.get(name)
    if spec is None or spec != other.tensors.specs.get(name):
        return False
    size = min(spec.nbytes, _BYTES // spec.dtype.itemsize * spec.dtype.itemsize)
    samples = bytearray(size), bytearray(size)
    for checkpoint, sample in zip((one, other), samples, strict=True):
        checkpoint.tensors.read_into(name, 0, memoryview(sample))
    return samples[0] == samples[1]
