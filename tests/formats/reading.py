"""Read tensors whole and in ranges, as a fold does, and as the bytes that were stored."""

from __future__ import annotations

import torch

from ema_cli.checkpoint import Tensors


def stored_bytes(tensor: torch.Tensor) -> bytes:
    """Return the tensor's elements in C order, by way of torch."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def read_range(tensors: Tensors, name: str, start: int, stop: int) -> bytes:
    """Return bytes `start` to `stop` of a tensor as the reader gives them; the buffer starts out dirty."""
    out = bytearray(b"\xa5" * (stop - start))
    tensors.read_into(name, start, memoryview(out))
    return bytes(out)


def read_all(tensors: Tensors) -> dict[str, bytes]:
    """Return every tensor's bytes as the reader gives them."""
    return {name: read_range(tensors, name, 0, spec.nbytes) for name, spec in tensors.specs.items()}
