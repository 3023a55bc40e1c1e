"""Formats that are recognised and not read: for each the reason, and a way to a format that is read."""

from __future__ import annotations

import fnmatch
import shlex
from pathlib import Path
from typing import NoReturn

from ema_cli.errors import CheckpointError
from ema_cli.formats.beginning import first_bytes
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.storage.location import names_in

# safetensors.numpy writes an array that is not contiguous, such as a transposed one, with its numbers in wrong places.
_FROM_JAX = (
    "export the parameters as safetensors first: safetensors.numpy.save_file, each array x as np.ascontiguousarray(x)"
)
_FROM_TF = "load the model in its framework and save its weights as safetensors or with torch.save first"
_FOLDERS = {
    "metadata.pkl": (
        "a file for each item and each rank, as torch_checkpointing writes, but not in torch.save's format",
        "save the items without layouts of their own, or with torch.distributed.checkpoint",
    ),
    "flax_model.msgpack.index.json": ("a Flax model in shards", _FROM_JAX),
    "saved_model.pb": ("a TensorFlow SavedModel", _FROM_TF),
    "tf_model.h5": ("a TensorFlow model", _FROM_TF),
    "*.data-?????-of-?????": ("TensorFlow's checkpoints", _FROM_TF),
}
_BEGINNINGS = {
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unpack it: zstd -d FILE"),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it: gunzip FILE"),
    b"\x04\x22\x4d\x18": ("is compressed with lz4", "unpack it: lz4 -d FILE"),
    b"BZh": ("is compressed with bzip2", "unpack it: bunzip2 FILE"),
    b"\xfd7zXZ\0": ("is compressed with xz", "unpack it: unxz FILE"),
    b"\x5d\0\0": ("is compressed with lzma", "unpack it: unlzma FILE"),
    b"\x89LZO": ("is compressed with lzop", "unpack it: lzop -d FILE"),
    b"version https://git-lfs": ("is a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    b"\x89HDF": ("is an HDF5 file, as Keras writes", _FROM_TF),
    b"GGUF": ("is a GGUF file, which is quantized or made for inference", "average the checkpoints it was made from"),
}


def matches(path: Path) -> bool:
    """Return whether this is of a known format that is not read."""
    return _reason(path) is not None


def open_checkpoint(path: Path, _options: ReadOptions) -> NoReturn:
    """Raise the CheckpointError that says why, and what to do instead."""
    reason, hint = _reason(path) or ("changed while it was looked at", "try again")
    raise CheckpointError(reason, subject=path, hint=hint.replace("FILE", shlex.quote(str(path))))


def _reason(path: Path) -> tuple[str, str] | None:
    """Return why the file or folder is not read, and the hint; None where it is of no such format."""
    beginning = first_bytes(path, 512)
    if not beginning:
        names = names_in(path)
        return next((why for pattern, why in _FOLDERS.items() if fnmatch.filter(names, pattern)), None)
    if beginning[257:262] == b"ustar":
        return "is a tar archive", "unpack it: tar -xf FILE"
    return next((why for start, why in _BEGINNINGS.items() if beginning.startswith(start)), None)


READER = Reader(matches, open_checkpoint)
