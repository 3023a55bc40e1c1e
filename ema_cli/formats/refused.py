"""What is recognised and not read, each with the reason and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from ema_cli.errors import CheckpointError
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.torch_file import first_bytes

_CONVERT = "convert it to safetensors or a plain state dict first"
_FOLDERS = {
    ".metadata": ("a torch.distributed.checkpoint folder, which is not read yet", _CONVERT),
    "pytorch_model.bin.index.json": ("a sharded .bin model, which is not read yet", _CONVERT),
    "adapter_model.safetensors": (
        "a PEFT adapter: averaging A and B apart is not averaging their product",
        "merge the adapter into its model, or name the file to average A and B all the same",
    ),
}
_BEGINNINGS = {
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unpack it: zstd -d FILE"),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it: gunzip FILE"),
    b"version https://git-lfs": ("is a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    b"\x80\x02": (
        "is a pickle outside a zip, torch's format before 1.6, which is not read yet",
        "save it again: torch.save(torch.load(FILE), FILE)",
    ),
}


def matches(path: Path) -> bool:
    """Return whether we know what this is, and that it is not read."""
    return _reason(path) is not None


def open_checkpoint(path: Path, _options: ReadOptions) -> NoReturn:
    """Raise the CheckpointError that says why."""
    reason = _reason(path)
    assert reason is not None
    raise CheckpointError(f"{path}: {reason[0]}", hint=reason[1])


def _reason(path: Path) -> tuple[str, str] | None:
    if path.is_dir():
        return next((why for name, why in _FOLDERS.items() if (path / name).is_file()), None)
    beginning = first_bytes(path, 32)
    return next((why for start, why in _BEGINNINGS.items() if beginning.startswith(start)), None)
