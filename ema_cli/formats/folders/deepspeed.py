"""Checkpoints of DeepSpeed: a folder, or a file in it. The model lies in one file, or in parts that ZeRO cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats.options import MASTERS_THERE, ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.formats.trainers.folders import (
    DEEPSPEED_MODEL,
    DEEPSPEED_OPTIMIZER,
    DEEPSPEED_PART,
    DEEPSPEED_UNIVERSAL,
    UNIVERSAL_WEIGHT,
)
from ema_cli.formats.trainers.latest import check_latest
from ema_cli.formats.zero.experts import MERGE_EXPERTS, has_automatic_experts, universal_hint
from ema_cli.storage.location import location, names_in
from ema_cli.text import lazy_pattern

_PIPELINE = lazy_pattern(r"^layer_\d+-model_\d+-model_states\.pt$|^layer_\d+-model_states\.pt$")
_EXPERTS = lazy_pattern(r"^(?:layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt$")
_STATES = (DEEPSPEED_MODEL, DEEPSPEED_PART, _PIPELINE, _EXPERTS)
_UNIVERSAL = "put it together first with your trainer's converter, as Megatron-DeepSpeed's tools/convert_checkpoint"
_INNER = "checkpoint"  # in which Lightning puts it


def matches(path: Path) -> bool:
    """Return whether this is a folder with model states of DeepSpeed, or one file of them."""
    return _is_part(path) or (location(path).info().is_folder and _find_folder(path) is not None)


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the model states in the folder, or in the one file of it that is named.

    Raises:
        IncompleteCheckpoint: where the file of a rank is missing.
        CheckpointError: where the model is cut otherwise than by ZeRO: tensor or pipeline parallel, experts.
    """
    # Only the files beside it show whether a file holds the whole model.
    folder = path.parent if _is_part(path) else _find_folder(path) or path
    check_latest(folder if _is_part(path) else path)
    checkpoint = _open_folder(path, folder, options)
    return dataclasses.replace(checkpoint, name=path.name, path=path, trainer="DeepSpeed")


def _open_folder(path: Path, folder: Path, options: ReadOptions) -> Checkpoint:
    names = sorted(location(folder).names())
    if any(map(_PIPELINE.search, names)):
        raise CheckpointError(
            "a DeepSpeed checkpoint, cut into the stages of a pipeline", subject=path, hint=_UNIVERSAL
        )
    if any(map(_EXPERTS.search, names)):
        raise CheckpointError(
            "a DeepSpeed checkpoint, cut into experts", subject=path, hint=_experts_hint(path, folder, names)
        )
    if DEEPSPEED_UNIVERSAL in names and location(folder / DEEPSPEED_UNIVERSAL).info().is_folder:
        from ema_cli.formats.zero.universal import open_universal

        return open_universal(folder, names, options)
    _check_tensors_whole(path, names)
    is_cut = any(map(DEEPSPEED_PART.search, names))
    if is_cut and path != folder and _is_part(path):
        raise CheckpointError(
            "is one rank's part of a model, cut by ZeRO stage 3", subject=path, hint=f"name its folder, {folder}"
        )
    if is_cut and any(map(DEEPSPEED_MODEL.search, names)):
        raise CheckpointError("holds model states of ZeRO stage 3, and of another save", subject=path)
    if is_cut:
        from ema_cli.formats.zero.checkpoint import open_parts  # which no other format needs

        return open_parts(folder, names, options)
    where = next(folder / name for name in names if DEEPSPEED_MODEL.search(name))
    if options.masters:
        from ema_cli.formats.zero.checkpoint import open_masters
        from ema_cli.formats.zero.saved import RankFile

        model = RankFile.open(where, options.before)
        _check_ranks(path, model.content.root.get("mp_world_size"))
        return open_masters(folder, names, model, options)
    file = location(where).open()
    opened = torch_file.open_torch(file)
    _check_ranks(path, opened.root.get("mp_world_size") if isinstance(opened.root, dict) else None)
    checkpoint = torch_file.from_torch(file, opened, options)
    return with_note(checkpoint, names)


def _check_tensors_whole(path: Path, names: Collection[str]) -> None:
    """Refuse files of ranks between which tensors are cut."""
    matched = [
        match for name in names for pattern in (DEEPSPEED_MODEL, DEEPSPEED_PART) if (match := pattern.search(name))
    ]
    _check_ranks(path, len({match[match.re.groups] for match in matched}))


def _check_ranks(path: Path, ranks: object) -> None:
    # The other ranks' files may lie on other machines: then one of them says how many there are.
    if type(ranks) is int and 1 < ranks < 1 << 31:
        raise CheckpointError(
            f"a DeepSpeed checkpoint, cut into {ranks} parts of tensors (tensor parallel)",
            subject=path,
            hint=universal_hint(path, path.parent if _is_part(path) else _find_folder(path) or path),
        )


def _experts_hint(path: Path, folder: Path, names: Collection[str]) -> str:
    """Return the hint for experts in files of their own: who puts them together, as the model states tell."""
    where = next((folder / name for name in names if DEEPSPEED_MODEL.search(name)), None)
    try:
        root = None if where is None else torch_file.open_torch(location(where).open()).root
    except EmaError:  # which says less of what to do
        root = None
    return universal_hint(path, folder) if isinstance(root, dict) and has_automatic_experts(root) else MERGE_EXPERTS


def with_note(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """Say where the optimizer keeps the weights in float32, and how to take them."""
    is_narrow = any(spec.dtype.is_narrow for spec in checkpoint.tensors.specs.values())
    if not is_narrow or not any(map(DEEPSPEED_OPTIMIZER.search, names)):
        return checkpoint
    return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, MASTERS_THERE))


def _is_part(path: Path) -> bool:
    return any(pattern.search(path.name) for pattern in _STATES) and location(path).info().is_file


def _find_folder(path: Path) -> Path | None:
    for folder in (path, path / _INNER):
        names = names_in(folder)
        patterns = (DEEPSPEED_MODEL, DEEPSPEED_PART, _PIPELINE)
        if any(pattern.search(name) for name in names for pattern in patterns) or _is_universal(folder, names):
            return folder
    return None


def _is_universal(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder has files of parameters as the universal format has them.

    The converter writes model states last: without them the folder is not whole, and no file in it is a model.
    """
    zero = folder / DEEPSPEED_UNIVERSAL
    stored = sorted(names_in(zero)) if DEEPSPEED_UNIVERSAL in names else []
    return any(UNIVERSAL_WEIGHT in names_in(zero / name) for name in stored[:2])  # one may be no parameter


READER = Reader(matches, open_checkpoint, takes_masters=True)
