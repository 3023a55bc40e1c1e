"""Checkpoints of DeepSpeed: a folder, or a file in it. A model in one file is read, one cut into parts is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.formats.trainers.latest import check_latest
from ema_cli.formats.trainers.names import names_in
from ema_cli.storage.location import location

if TYPE_CHECKING:
    from ema_cli.formats.torch_save.tensors import TorchFile

_MODEL = re.compile(r"^mp_rank_(\d+)_model_states\.pt$")
_ZERO_3 = re.compile(r"^zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt$")
_PIPELINE = re.compile(r"^layer_\d+-model_\d+-model_states\.pt$|^layer_\d+-model_states\.pt$")
_EXPERTS = re.compile(r"^(?:layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt$")
_MASTERS = re.compile(r"optim_states\.pt$")
_CONVERT = "put it together first, with the script that DeepSpeed left there: python zero_to_fp32.py . OUTPUT"
_UNIVERSAL = "put it together first with your trainer's converter, as Megatron-DeepSpeed's tools/convert_checkpoint"
_REFUSED = (
    (_ZERO_3, "cut into parts by ZeRO stage 3", _CONVERT),
    (_PIPELINE, "cut into the stages of a pipeline", _UNIVERSAL),
    (_EXPERTS, "cut into experts", _UNIVERSAL),
)
_INNER = "checkpoint"  # in which Lightning puts it


def matches(path: Path) -> bool:
    """Return whether this is a folder with model states of DeepSpeed, or one file of them."""
    return _is_part(path) or _find_folder(path) is not None


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the model states in the folder, or in the one file of it that is named.

    Raises:
        CheckpointError: where the model is cut into parts: ZeRO-3, tensor or pipeline parallel, experts.
    """
    # Only the files beside it show whether a file holds the whole model.
    folder = path.parent if _is_part(path) else _find_folder(path) or path
    check_latest(folder if _is_part(path) else path)
    names = sorted(location(folder).names())
    for pattern, reason, hint in _REFUSED:
        if any(pattern.search(name) for name in names):
            raise CheckpointError(f"a DeepSpeed checkpoint, {reason}", subject=path, hint=hint)
    files = [location(folder / name).open() for name in names if _MODEL.search(name)]
    opened = [torch_file.open_torch(file) for file in files]
    # The other ranks' files may lie on other machines.
    ranks = max([len(files), *map(_ranks, opened)])
    if ranks != 1:
        raise CheckpointError(
            f"a DeepSpeed checkpoint, cut into {ranks} parts of tensors (tensor parallel)",
            subject=path,
            hint=_UNIVERSAL,
        )
    checkpoint = torch_file.from_torch(files[0], opened[0], options)
    notes = list(checkpoint.notes)
    floats = [spec for spec in checkpoint.tensors.specs.values() if spec.dtype.kind == "float"]
    if all(spec.dtype.is_narrow for spec in floats) and any(map(_MASTERS.search, names)):
        notes.append("the weights are in half precision; DeepSpeed keeps float32 ones, which are not read, in its "
                     "optimizer's files (zero_to_fp32.py puts them together)")  # fmt: skip
    return dataclasses.replace(checkpoint, name=path.name, path=path, trainer="DeepSpeed", notes=tuple(notes))


def _ranks(opened: TorchFile) -> int:
    """Return the number of parts into which tensors are cut, as the file records it."""
    ranks = opened.root.get("mp_world_size") if isinstance(opened.root, dict) else None
    return ranks if type(ranks) is int and 0 < ranks < 1 << 31 else 1


def _is_part(path: Path) -> bool:
    is_named = any(pattern.search(path.name) for pattern in (_MODEL, _ZERO_3, _PIPELINE, _EXPERTS))
    return is_named and location(path).info().is_file


def _find_folder(path: Path) -> Path | None:
    for folder in (path, path / _INNER):
        if any(pattern.search(name) for name in names_in(folder) for pattern in (_MODEL, _ZERO_3, _PIPELINE)):
            return folder
    return None


READER = Reader(matches, open_checkpoint)
