"""Pickles and archives put together by hand, so that each can say what no library would write."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

NAMES = ("w", "b")
ESCAPES = "\x1b[31m[red]\n\u202eerror: a\r\x07\x9b"  # what a terminal, or who reads it, could take for something else
SHOWN = r"\x1b[31m[red]\n\u202eerror: a\r\x07\x9b"


def data(step: int) -> dict[str, bytes]:
    """Return the bytes of the weights at `step`: 2 x 3 floats and 3."""
    return {"0": (np.arange(6, dtype="<f4") * step).tobytes(), "1": np.full(3, step, "<f4").tobytes()}


# ---- Values, as the instructions that push them ----


def text(value: str | bytes) -> bytes:
    """Push text."""
    encoded = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """Push an integer of any size."""
    if abs(value) < 1 << 31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    head = b"\x8a" + bytes([size]) if size < 256 else b"\x8b" + struct.pack("<i", size)
    return head + value.to_bytes(size, "little", signed=True)


def pack(*values: bytes) -> bytes:
    """Push a tuple."""
    return b"(" + b"".join(values) + b"t"


def numbers(*values: int) -> bytes:
    """Push a tuple of integers."""
    return pack(*map(number, values))


def mapping(pairs: Mapping[str, bytes]) -> bytes:
    """Push a dict."""
    return b"}(" + b"".join(text(key) + value for key, value in pairs.items()) + b"u"


def name(path: str) -> bytes:
    """Push a class or function, by its dotted name."""
    module, _, last = path.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(path: str, *arguments: bytes) -> bytes:
    """Push what a call gives."""
    return name(path) + pack(*arguments) + b"R"


def build(path: str, state: bytes) -> bytes:
    """Push an object of a class, with a state."""
    return name(path) + b")\x81" + state + b"b"


def storage(key: str = "0", count: int = 6, kind: str = "torch.FloatStorage") -> bytes:
    """Push a storage, as torch refers to one."""
    return pack(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    stored: bytes = b"", *, offset: int = 0, shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] | None = None
) -> bytes:
    """Push a tensor, as torch rebuilds one."""
    steps = strides if strides is not None else tuple(int(np.prod(shape[at + 1 :])) for at in range(len(shape)))
    size = (number(offset), numbers(*shape), numbers(*steps), b"\x89", call("collections.OrderedDict"))
    return call("torch._utils._rebuild_tensor_v2", stored or storage(), *size)


WEIGHTS = {"w": tensor(), "b": tensor(storage("1", 3), shape=(3,))}


def whole(value: bytes) -> bytes:
    """Return a pickle of a value."""
    return b"\x80\x02" + value + b"."


def saved(step: int = 3, weights: Mapping[str, bytes] = WEIGHTS, **beside: bytes) -> bytes:
    """Return the pickle of what a training loop saves, with more beside the weights."""
    return whole(mapping({**beside, "model": mapping(weights), "step": number(step)}))


def weights(**more: bytes) -> bytes:
    """Return the pickle of what a training loop saves, with more among the weights."""
    return saved(3, {**WEIGHTS, **more})


# ---- Files ----


def archive(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for entry, content in entries.items():
            file.writestr(zipfile.ZipInfo(entry), content, method)
    return out.getvalue()


def million_entries() -> bytes:
    """Return an archive of two and a half million entries without bytes, as small as can be."""
    names = [b"a/%d" % each for each in range(2_500_000)]
    local = struct.Struct("<4s5H3L2H").pack(b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    records = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(each), 0, 0, 0, 0, 0, 30 * at) + each
        for at, each in enumerate(names)
    )
    start, count = 30 * len(names), len(names)
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(records), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(records), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local * count + records + large + locator + end


def torch_zip(pickle: bytes, stored: Mapping[str, bytes] | None = None, **more: bytes) -> bytes:
    """Return a file as torch.save writes it."""
    entries = {"a/data.pkl": pickle, "a/byteorder": b"little", **more}
    stored = data(3) if stored is None else stored
    return archive({**entries, **{f"a/data/{key}": content for key, content in stored.items()}, "a/version": b"3\n"})


def good_zip(path: Path, step: int) -> None:
    """Write a good file of torch's."""
    path.write_bytes(torch_zip(saved(step), data(step)))


MAGIC = whole(number(0x1950A86A20F9469CFC6C))
PROTOCOL = whole(b"M\xe9\x03")
SYSTEM = whole(mapping({"protocol_version": b"M\xe9\x03", "little_endian": b"\x88", "type_sizes": b"}"}))
KEYS = whole(b"](" + text("0") + text("1") + b"e")


def legacy(root: bytes, *parts: bytes, step: int = 3, tail: bytes | None = None) -> bytes:
    """Return a file as torch.save wrote it before 1.6; `parts` replace the first pickles, `tail` what follows them."""
    head = [MAGIC, PROTOCOL, SYSTEM]
    head[: len(parts)] = parts
    # An id of a storage has one more part here: what it is a view of.
    return b"".join(head) + root.replace(b"tQ", b"NtQ") + (KEYS + stored(step) if tail is None else tail)


def stored(step: int = 3, counts: tuple[int, ...] = (6, 3)) -> bytes:
    """Return the storages of a legacy file, each after its number of elements."""
    pairs = zip(counts, data(step).values(), strict=True)
    return b"".join(struct.pack("<q", count) + content for count, content in pairs)


def good_legacy(path: Path, step: int) -> None:
    """Write a good file of old torch's."""
    path.write_bytes(legacy(saved(step), step=step))


def safetensors(header: bytes | Mapping[str, object], content: bytes | None = None) -> bytes:
    """Return a safetensors file with any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(raw)) + raw + (b"".join(data(3).values()) if content is None else content)


def entry(begin: int = 0, end: int = 24, shape: tuple[int, ...] = (2, 3), dtype: str = "F32") -> dict[str, object]:
    """Return a tensor's entry in a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HEADER = {"w": entry(), "b": entry(24, 36, (3,))}


def good_safetensors(path: Path, step: int) -> None:
    """Write a good safetensors file."""
    path.write_bytes(safetensors(HEADER, b"".join(data(step).values())))


def writes(content: Callable[[], bytes] | bytes) -> Callable[[Path, Path], None]:
    """Return a builder that writes a file."""

    def build(path: Path, _canary: Path) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content())

    return build
