"""msgpack as Flax writes it, made by hand: its extensions for arrays, and arrays in chunks."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def packed(value: Any, chunk: int = 1 << 30) -> bytes:
    """Return what flax.serialization.to_bytes makes, of arrays of more than `chunk` bytes in chunks."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return bytes([value]) if 0 <= value < 128 else b"\xd3" + struct.pack(">q", value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return (bytes([0xA0 + len(text)]) if len(text) < 32 else b"\xda" + struct.pack(">H", len(text))) + text
        case bytes():
            return b"\xc6" + struct.pack(">I", len(value)) + value
        case dict():
            head = bytes([0x80 + len(value)]) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
            return head + b"".join(packed(part, chunk) for pair in value.items() for part in pair)
        case list() | tuple():
            return b"\xdc" + struct.pack(">H", len(value)) + b"".join(packed(part, chunk) for part in value)
        case np.ndarray() if value.nbytes > chunk:
            flat, size = value.reshape(-1), max(1, chunk // value.itemsize)
            chunks = [flat[at : at + size] for at in range(0, len(flat), size)]
            numbered = {"shape": dict_of(value.shape), "chunks": dict_of(chunks)}
            return packed({"__msgpack_chunked_array__": True, **numbered}, chunk)
        case np.ndarray() | np.generic():
            name = "bfloat16" if value.dtype == "V2" else value.dtype.name
            return extension(packed((list(value.shape), name, value.tobytes())), 1 if value.shape else 3)
    raise TypeError(value)


def dict_of(values: Any) -> dict[str, Any]:
    """Return a list as Flax stores it."""
    return {str(number): value for number, value in enumerate(values)}


def extension(content: bytes, kind: int = 1) -> bytes:
    """Return a value of a type of its own."""
    return b"\xc9" + struct.pack(">Ib", len(content), kind) + content
