"""What is recognised and not read: each with its reason, a way out that works, and never a wrong guess."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoWeights
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.folders import refused


def saved() -> bytes:
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save({"model": {"w": torch.ones(2)}}, file)
    return file.getvalue()


def tar() -> bytes:
    """Return a tar archive of a torch file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        data = saved()
        info = tarfile.TarInfo("a.pt")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "ep1-ba5-rank0.pt.gz": (lambda: gzip.compress(saved()), "is compressed with gzip", "gunzip ep1-ba5-rank0.pt.gz"),
    "a.pt.bz2": (lambda: bz2.compress(saved()), "is compressed with bzip2", "bunzip2 a.pt.bz2"),
    "a.pt.xz": (lambda: lzma.compress(saved()), "is compressed with xz", "unxz a.pt.xz"),
    "a.pt.lzma": (
        lambda: lzma.compress(saved(), lzma.FORMAT_ALONE),
        "is compressed with lzma",
        "unlzma a.pt.lzma",
    ),
    "a.pt.zst": (lambda: b"\x28\xb5\x2f\xfd" + bytes(99), "is compressed with zstd", "zstd -d a.pt.zst"),
    "a.pt.lz4": (lambda: b"\x04\x22\x4d\x18" + bytes(99), "is compressed with lz4", "lz4 -d a.pt.lz4"),
    "a.pt.lzo": (lambda: b"\x89LZO\0\r\n\x1a\n" + bytes(99), "is compressed with lzop", "lzop -d a.pt.lzo"),
    "a.pt": (lambda: gzip.compress(saved()), "is compressed with gzip", "gunzip a.pt"),  # whatever its name
    "a.tar": (tar, "is a tar archive", "tar -xf a.tar"),
    "a.bin": (lambda: LFS, "is a Git LFS pointer", "git lfs pull"),
    "a.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file", "safetensors"),
    "a.gguf": (lambda: b"GGUF" + bytes(99), "is a GGUF file", "the checkpoints it was made from"),
}


def refusal(path: Path) -> EmaError:
    """Return the error that opening it gives, which names it."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_kinds(name: str, tmp_path: Path) -> None:
    """A file is known by its first bytes: the error says what it is, and the command or the way that helps."""
    make, message, hint = FILES[name]
    (tmp_path / name).write_bytes(make())
    error = refusal(tmp_path / name)
    assert type(error) is CheckpointError
    assert message in str(error)
    assert hint in (error.hint or "").replace(f"{tmp_path}/", "")
    assert "FILE" not in (error.hint or "")


FOLDERS = {
    "metadata.pkl": ("a file for each item and each rank", "torch.distributed.checkpoint"),
    "flax_model.msgpack.index.json": ("a Flax model in shards", "safetensors"),
    "saved_model.pb": ("a TensorFlow SavedModel", "safetensors"),
    "tf_model.h5": ("a TensorFlow model", "safetensors"),
    "ckpt-5.data-00000-of-00001": ("TensorFlow's checkpoints", "safetensors"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_other_kinds(name: str, tmp_path: Path) -> None:
    """A folder is known by a file that its writer leaves in it."""
    message, hint = FOLDERS[name]
    (tmp_path / name).write_bytes(b"")
    assert is_checkpoint_folder(tmp_path)
    error = refusal(tmp_path)
    assert type(error) is CheckpointError
    assert message in str(error)
    assert hint in (error.hint or "")


def test_a_folder_that_holds_weights_beside_is_read(tmp_path: Path) -> None:
    """A model published for several frameworks has one that is read."""
    (tmp_path / "flax_model.msgpack").write_bytes(b"")
    (tmp_path / "tf_model.h5").write_bytes(b"")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors.specs) == ["w"]


@pytest.mark.parametrize(
    "data", [b"hello, this is text", b"\x00" * 600, b"PK\x05\x06" + bytes(18), bytes(range(256)) * 4]
)
def test_a_file_of_an_unknown_format_holds_no_weights(data: bytes, tmp_path: Path) -> None:
    """Other bytes are no checkpoint, and not taken for any of these."""
    (tmp_path / "a.pt").write_bytes(data)
    assert not refused.matches(tmp_path / "a.pt")
    assert type(refusal(tmp_path / "a.pt")) is NoWeights


@pytest.mark.parametrize("length", range(8))
def test_an_empty_file_is_incomplete(length: int, tmp_path: Path) -> None:
    """A file of a few bytes was begun and not written."""
    (tmp_path / "a.pt").write_bytes(saved()[:length])
    assert isinstance(refusal(tmp_path / "a.pt"), IncompleteCheckpoint)


def test_files_that_only_begin_alike_are_read(tmp_path: Path) -> None:
    """A torch file under a name of another kind is a torch file."""
    for name in ("a.gz", "a.gguf", "a.tar", "a.tgz"):
        (tmp_path / name).write_bytes(saved())
        assert list(open_checkpoint(tmp_path / name).tensors.specs) == ["w"]


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    """What is not there, or is no file, is named."""
    assert isinstance(refusal(tmp_path / "none.pt"), CheckpointError)
    (tmp_path / "empty").mkdir()
    assert str(refusal(tmp_path / "empty")) == f"{tmp_path / 'empty'}: a folder without a checkpoint"


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_the_hint_for_jax_writes_what_is_there(dtype: str, tmp_path: Path) -> None:
    """safetensors.numpy writes a transposed array wrongly, without an error, unless it is made contiguous first."""
    (tmp_path / "flax_model.msgpack.index.json").write_text("{}")
    hint = refusal(tmp_path).hint or ""
    made = re.search(r"np\.\w+\(x\)", hint)
    assert made is not None
    x = np.arange(6).reshape(2, 3).astype(dtype).T
    save_numpy({"w": eval(made[0], {"np": np, "x": x})}, tmp_path / "w.safetensors")
    assert "safetensors.numpy.save_file" in hint
    assert np.array_equal(load_numpy(tmp_path / "w.safetensors")["w"], x)
