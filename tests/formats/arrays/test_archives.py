"""Archives around what torch.save wrote: its place in them, by every form of a header of tar, and headers that lie."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.formats.arrays.archives import tar_members
from ema_cli.storage.location import location


def weights() -> bytes:
    """Return what torch saves."""
    out = io.BytesIO()
    torch.save({"w": torch.arange(6.0)}, out)
    return out.getvalue()


def tar(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return an archive of files by name and content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def forged(data: bytes, at: int, field: bytes) -> bytes:
    """Return an archive whose first header has other bytes at a place, and the sum that goes with them."""
    header = bytearray(data[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_python_reads(form: int, tmp_path: Path) -> None:
    """Names of every length and script, in each format of tar, with the bytes of each."""
    names = ["./a", "b" * 100, "folder/" + "c" * 90, "empty"]
    names += ["d" * 300, "重み/" + "e" * 150] if form != tarfile.USTAR_FORMAT else ["f" * 120 + "/" + "g" * 90]
    (tmp_path / "a.nemo").write_bytes(tar(*((name, name.encode() * (name != "empty")) for name in names), form=form))
    members = tar_members(location(tmp_path / "a.nemo").open())
    with tarfile.open(tmp_path / "a.nemo") as archive:
        read = {info.name.removeprefix("./"): archive.extractfile(info).read() for info in archive if info.isreg()}
    assert {name: region.read(0, region.size) for name, region in members.items()} == read
    assert len(read) == len(names)


def test_a_size_in_another_number_is_read(tmp_path: Path) -> None:
    """GNU writes large sizes as bytes; a folder and a link have no content."""
    whole = forged(tar(("w", b"12345")), 124, b"\x80" + (5).to_bytes(11, "big"))
    (tmp_path / "a.nemo").write_bytes(whole)
    assert tar_members(location(tmp_path / "a.nemo").open())["w"].size == 5
    (tmp_path / "b.nemo").write_bytes(tar(("model_weights.ckpt", b""), kind=tarfile.SYMTYPE))
    assert dict(tar_members(location(tmp_path / "b.nemo").open())) == {}


NAME = "model_weights.ckpt"
DAMAGED: dict[str, tuple[Callable[[], bytes], type[CheckpointError], str]] = {
    "no end": (lambda: tar((NAME, weights()))[:2048], IncompleteCheckpoint, "has no end"),
    "no blocks of zeros": (lambda: tar((NAME, b""))[:512], IncompleteCheckpoint, "has no end"),
    "a size beyond the file": (
        lambda: forged(tar((NAME, b"x")), 124, b"77777777777\0"), IncompleteCheckpoint, "has no end"),
    "a size of more than files have": (
        lambda: forged(tar((NAME, b"x")), 124, b"\x80" + b"\xff" * 11), CheckpointError, "damaged"),
    "a size that is no number": (lambda: forged(tar((NAME, b"x")), 124, b"9x9"), CheckpointError, "damaged"),
    "another sum": (lambda: b"N" + tar((NAME, b"x"))[1:], CheckpointError, "damaged"),
    "one name twice": (lambda: tar((NAME, weights()), (f"./{NAME}", weights())), CheckpointError, "twice"),
    "a name that is no text": (lambda: forged(tar((NAME, b"x")), 0, b"\xff\xfe"), CheckpointError, "not UTF-8"),
    "an extension of gigabytes": (
        lambda: forged(forged(tar((NAME, b"x")), 156, b"x"), 124, b"77777777777\0"), CheckpointError, "damaged"),
    "a record that lies about its length": (
        lambda: forged(tar((NAME, b"999 path=x\n")), 156, b"x"), CheckpointError, "damaged"),
    "an archive in itself": (lambda: tar((NAME, tar((NAME, weights())))), CheckpointError, "weights.ckpt' in it"),
    "weights that are a link": (lambda: tar((NAME, b""), kind=tarfile.SYMTYPE), CheckpointError, "without model_w"),
    "weights outside": (lambda: tar((f"../{NAME}", weights())), CheckpointError, "in parts, as '../model_w"),
    "text": (lambda: b"text" * 300, CheckpointError, "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_archive_is_one_error(kind: str, tmp_path: Path) -> None:
    """It names the file; what was cut off while it was written is incomplete."""
    make, error, says = DAMAGED[kind]
    path = tmp_path / "a.nemo"
    path.write_bytes(make())
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_members_without_end_are_not_counted(tmp_path: Path) -> None:
    """Headers are read one after the other: there is a most."""
    (tmp_path / "a.nemo").write_bytes(tar(("w", b""))[:512] * ((1 << 16) + 1) + bytes(1024))
    with pytest.raises(CheckpointError, match="twice"):
        open_checkpoint(tmp_path / "a.nemo")
