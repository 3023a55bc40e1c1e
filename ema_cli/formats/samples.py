"""Compare the beginnings of tensors: a difference is sure, equality is likely, and either is seen at once."""

from __future__ import annotations

from ema_cli.checkpoint import Tensors

_BYTES = 4096  # of each tensor


def begin_alike(one: Tensors, other: Tensors, name: str) -> bool:
    """Return whether both have the tensor `name` with one spec and the same first bytes."""
    spec = one.specs.get(name)
    if spec is None or spec != other.specs.get(name):
        return False
    size = min(spec.nbytes, _BYTES // spec.dtype.itemsize * spec.dtype.itemsize)
    samples = bytearray(size), bytearray(size)
    for tensors, sample in zip((one, other), samples, strict=True):
        tensors.read_into(name, 0, memoryview(sample))
    return samples[0] == samples[1]
