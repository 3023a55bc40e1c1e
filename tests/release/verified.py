"""Averages that were verified, and changes of their files, headers, marks and manifests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ema_cli._version import __version__
from ema_cli.folding.sample import Sample
from ema_cli.release.published import Published, find_averages
from ema_cli.release.recompute import verify_against
from ema_cli.release.verify import Verified, verify

MANIFEST, SUMS = "ema-manifest.json", "SHA256SUMS"
SINGLE, SINGLE_MANIFEST, SINGLE_SUMS = "one.safetensors", "one.safetensors.manifest.json", "one.safetensors.sha256"
Edit = Callable[[dict[str, Any]], object]


def check(path: Path) -> Verified:
    """Verify the only average at a path."""
    (published,) = find_averages([path])
    return verify(published, threads=2)


def problems(path: Path) -> list[str]:
    """Return what does not hold of the only average at a path, its files by name."""
    return [each.replace(f"{path.parent}/", "") for each in check(path).problems]


def flip(path: Path, at: int = -1) -> None:
    """Turn one bit of a byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def begin_of(path: Path, tensor: str) -> int:
    """Return the byte at which a tensor of a single file begins."""
    located = check(path).snapshot.opened[path.name].tensors.locate(tensor)
    assert located is not None
    return located[1]


def vouch(path: Path, edit: Edit = lambda manifest: None) -> None:
    """Edit the manifest of an average, and make it and the sums those of the files as they are."""
    published = Published(path, path.is_dir())
    manifest = json.loads(published.manifest.read_text())
    edit(manifest)
    for each in manifest["outputs"]:
        file = published.folder / each["name"]
        if os.path.isfile(file):  # noqa: PTH113 - of any name: a path's own would raise for a long one
            each["bytes"] = file.stat().st_size
            each["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    published.manifest.write_text(json.dumps(manifest))
    sums = {each["name"]: each["sha256"] for each in manifest["outputs"]}
    sums[published.manifest.name] = hashlib.sha256(published.manifest.read_bytes()).hexdigest()
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    published.sums.write_bytes(text.encode(errors="replace"))


def edit_header(path: Path, edit: Edit) -> None:
    """Edit the header of a safetensors file."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def edit_mark(path: Path, edit: Edit) -> None:
    """Edit what a safetensors file says of how it was averaged."""

    def change(header: dict[str, Any]) -> None:
        mark = json.loads(header["__metadata__"]["ema_cli"])
        edit(mark)
        header["__metadata__"]["ema_cli"] = json.dumps(mark)

    edit_header(path, change)


def against(path: Path, *checkpoints: Path, sample: bool = False, seed: str = "seed") -> Verified:
    """Verify an average, and compare it with what checkpoints give."""
    return verify_against(check(path), checkpoints, sample=Sample(seed) if sample else None)


def say_version(path: Path, version: str = "0.0.9") -> None:
    """Let an average say everywhere that another version of ema-cli made it, and make all sums fit."""
    files = [path] if path.is_file() else [*path.glob("*.safetensors")]
    for file in files:
        if file.suffix == ".safetensors":
            edit_mark(file, lambda mark: mark.update(version=version))
        else:
            data = file.read_bytes()
            assert len(version) == len(__version__)
            file.write_bytes(with_record(data, f'"version":"{__version__}"', f'"version":"{version}"'))
    vouch(path, lambda manifest: manifest["tool"].update(version=version))


def with_record(data: bytes, old: str, new: str) -> bytes:
    """Return an archive of torch's with a text in one record replaced by one of the same length, its sums made anew."""
    assert len(old) == len(new)
    out = bytearray(data.replace(old.encode(), new.encode()))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            header = struct.unpack_from("<4s5H3L2H", data, entry.header_offset)
            begin = entry.header_offset + 30 + header[9] + header[10]
            content = bytes(out[begin : begin + entry.file_size])
            before = struct.pack("<L", entry.CRC)
            if zlib.crc32(content) != entry.CRC:
                out = bytearray(bytes(out).replace(before, struct.pack("<L", zlib.crc32(content))))
    return bytes(out)
