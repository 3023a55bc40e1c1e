"""Checkpoints that are one file in a container of another library than torch, known by the suffix of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint
from ema_cli.formats.arrays.orbax_folder import FORMAT as ORBAX
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.torch_save.file import from_torch
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

if TYPE_CHECKING:
    from ema_cli.formats.torch_save.content import TorchFile


def _npz(file: InputFile) -> TorchFile:
    from ema_cli.formats.arrays.npz import open_npz

    return open_npz(file)


def _stable_baselines(file: InputFile) -> TorchFile:
    from ema_cli.formats.arrays.stable_baselines import open_model

    return open_model(file)


def _nemo(file: InputFile) -> TorchFile:
    from ema_cli.formats.arrays.nemo import open_nemo

    return open_nemo(file)


def _paddle(file: InputFile) -> TorchFile:
    from ema_cli.formats.arrays.paddle import open_pdparams

    return open_pdparams(file)


def _flax(file: InputFile) -> TorchFile:
    from ema_cli.formats.arrays.flax import open_msgpack

    return open_msgpack(file)


# By suffix: the container, in words, and what reads its headers. Each is imported when such a file is there.
_CONTAINERS: Mapping[str, tuple[str, Callable[[InputFile], TorchFile]]] = {
    ".npz": ("npz", _npz),
    ".zip": ("stable-baselines3 zip", _stable_baselines),
    ".nemo": ("nemo", _nemo),
    ".pdparams": ("pdparams", _paddle),
    ".msgpack": ("Flax msgpack", _flax),
}

FORMATS = frozenset(form for form, _ in _CONTAINERS.values())
READ_ONLY = FORMATS | {ORBAX}


def matches(path: Path) -> bool:
    """Return whether the name of a file ends as those of one of the containers do."""
    return path.suffix.lower() in _CONTAINERS


def is_other_archive(path: Path) -> bool:
    """Return whether a file is a zip archive that can be read and holds no model: of source text, of data."""
    if path.suffix.lower() != ".zip":
        return False
    from ema_cli.formats.arrays.stable_baselines import is_model

    return not is_model(location(path).open())


def open_container(file: InputFile) -> TorchFile:
    """Read the headers of a file in one of the containers.

    Raises:
        CheckpointError: naming the file and what is wrong.
    """
    return _CONTAINERS[file.path.suffix.lower()][1](file)


def memory_of_blocks(checkpoints: Iterable[Checkpoint]) -> int:
    """Return the memory that decompressed blocks of arrays take, of which a range is read: those of Orbax."""
    if all(checkpoint.format != ORBAX for checkpoint in checkpoints):
        return 0
    from ema_cli.formats.arrays.zarr import needed_bytes

    return needed_bytes()


def keep_blocks(checkpoints: Iterable[Checkpoint], nbytes: int) -> None:
    """Let decompressed blocks take `nbytes` more, so that fewer are decompressed again."""
    if memory_of_blocks(checkpoints):
        from ema_cli.formats.arrays.zarr import keep_more

        keep_more(nbytes)


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the file's headers, and find the model in it as in what torch.save writes.

    Raises:
        CheckpointError: naming the file and what is wrong.
    """
    form, _ = _CONTAINERS[path.suffix.lower()]
    file = location(path).open()
    return from_torch(file, open_container(file), options, form=form)


READER = Reader(matches, open_checkpoint, folders=False)
