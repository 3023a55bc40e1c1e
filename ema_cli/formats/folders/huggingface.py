"""The model in a folder as Hugging Face's Trainer, Accelerate and `save_pretrained` write it. `several` asks for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path

from ema_cli.checkpoint import Averages, Checkpoint, Pretrained
from ema_cli.errors import CUT_SHORT, CheckpointError, IncompleteCheckpoint, NoWeights
from ema_cli.formats.folders import refused
from ema_cli.formats.folders.rank_files import open_ranks, with_scalars
from ema_cli.formats.json_text import read_json
from ema_cli.formats.options import ReadOptions, one_model_error, several_models_error
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.shards import join_parts, open_index
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.formats.trainers.adapters import adapter_settings
from ema_cli.formats.trainers.choice import settle_averages
from ema_cli.formats.trainers.folders import (
    ADAPTER_CONFIG,
    ADAPTERS,
    AVERAGES_INSIDE,
    BASES,
    CONSOLIDATED,
    EXTRAS,
    HF_METADATA,
    RANK_SHARD,
    SHARD,
    SHARDED,
    TRAINER_STATE,
)
from ema_cli.formats.trainers.names import WEIGHT_SUFFIXES, averages_file, is_weights_name
from ema_cli.formats.trainers.trainer_state import read_trainer_state
from ema_cli.storage.location import location, names_in

_CONFIG = "config.json"
_DIFFUSERS = "diffusion_pytorch_model"
_KNOWN = (*BASES, *BASES.values(), *EXTRAS, ".")  # beginnings of the names of a model's own files
_MAX_CONFIG_BYTES = 128 << 20
_NUMBERED = re.compile(r"^(model|pytorch_model)_(\d+)\.(?:safetensors|bin)$")  # Accelerate's second model and on


def matches(path: Path) -> bool:
    """Return whether the folder holds a model, or shards of one."""
    return is_model(names_in(path))


def is_model(names: set[str]) -> bool:
    """Return whether a folder with files of these names holds a model, or shards of one."""
    return any(_model_file(base, names) for base in BASES) or any(map(_is_shard, names))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the model in the folder, and its clocks from `trainer_state.json`.

    Raises:
        IncompleteCheckpoint: where its writer is not done.
        UsageError: where it holds several models, and `options.component` does not say which.
    """
    names = names_in(path)
    if CONSOLIDATED in names and _has_shards_alone(names) and matches(path / CONSOLIDATED):
        try:
            return _open_consolidated(path, names, options)
        except IncompleteCheckpoint:  # its writer died, or still writes it; the pieces were whole before
            if not any(map(RANK_SHARD.search, names)):
                raise
    base, file_name = _choose(path, names, options)
    if base == _DIFFUSERS and _is_ema_model(path):
        return _open_averages(path, file_name, options)
    checkpoint = _open_own(path, file_name, names, options)
    if SHARDED in names:
        checkpoint = with_scalars(checkpoint, path / SHARDED, options)
    progress, files = checkpoint.progress, checkpoint.files
    if TRAINER_STATE in names:
        state = location(path / TRAINER_STATE).open()
        progress, files = read_trainer_state(state), (*files, state)
    is_adapter = base in ADAPTERS or any(_model_file(adapter, names) for adapter in ADAPTERS)
    settings, more = adapter_settings(path) if is_adapter else ({}, ())
    return dataclasses.replace(
        checkpoint,
        name=path.name,
        path=path,
        files=(*files, *more),
        trainer=_trainer(names),
        progress=progress,
        resumable=TRAINER_STATE in names,
        pretrained=Pretrained(base, path / HF_METADATA if HF_METADATA in names else path),
        adapter=dataclasses.replace(checkpoint.adapter, values={**checkpoint.adapter.values, **settings}),
    )


def _open_consolidated(path: Path, names: set[str], options: ReadOptions) -> Checkpoint:
    """Open the model that was put together from the files of ranks beside it; raise as `open_checkpoint`."""
    whole = open_checkpoint(path / CONSOLIDATED, options)
    taken = with_scalars(whole, path, options)
    what = "taken" if taken.tensors is whole.tensors else "all else taken"
    note = f"{what} from {CONSOLIDATED}/, and not from the files of ranks beside it"
    trainer = _trainer(names) or whole.trainer
    return dataclasses.replace(taken, name=path.name, path=path, trainer=trainer, notes=(*taken.notes, note))


def _open_own(path: Path, file_name: str, names: Collection[str], options: ReadOptions) -> Checkpoint:
    """Open the model in a folder: its file or index, and the files beside it that are parts of it."""
    whole = open_tensors(path / file_name, options)
    notes = list(whole.notes)
    parts = [whole]
    more = [name for name in _own_files(names) if name != file_name] if not _NUMBERED.search(file_name) else []
    for name in more:
        try:
            parts.append(open_tensors(path / name, dataclasses.replace(options, weights=None)))
        except NoWeights:
            notes.append(f"{name} holds no weights, and is left out")
    averages = averages_file(names)
    if averages is not None and options.weights is None and AVERAGES_INSIDE not in names:  # which a search names
        notes.append(f"raw weights taken; by its name, '{averages}' beside them holds averages (--weights ema)")
    beside = [name for name in sorted(names) if _is_beside(name) and name != averages]
    twice = [_twice_warning(base) for base in BASES if _is_twice(base, names)]
    warnings = (*whole.warnings, *twice, *([left_out_warning(beside)] if beside else []))
    whole = dataclasses.replace(whole, warnings=warnings, notes=tuple(notes))
    if len(parts) == 1:
        return whole
    tensors = join_parts(path, parts)
    files = tuple(file for part in parts for file in part.files)
    return dataclasses.replace(whole, tensors=tensors, files=files)


def left_out_warning(names: Collection[str]) -> str:
    """Return the warning that says which files or folders with weights are left out of the average."""
    shown = ", ".join(list(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"not averaged, and not in the output: the weights in {shown}"


def _own_files(names: Collection[str]) -> list[str]:
    """Return the files, or indexes, of all models and parts of one that a folder holds under known names."""
    models = [name for base in BASES if (name := _model_file(base, names))]
    extras = [
        next((f"{stem}{suffix}" for suffix in (".safetensors", ".bin") if f"{stem}{suffix}" in names), None)
        for stem in EXTRAS
    ]
    return [*models, *filter(None, extras)]


def _is_beside(name: str) -> bool:
    """Return whether a file of this name holds weights that are not known. A search names those with numbers."""
    return (
        name.endswith(WEIGHT_SUFFIXES)
        and not name.startswith(_KNOWN)
        and is_weights_name(name)
        and not re.search("[0-9]", name)
    )


def open_tensors(path: Path, options: ReadOptions) -> Checkpoint:
    """Open a file of tensors, the shards that an index names, or, where it is a folder, the shards of all ranks."""
    if location(path).info().is_folder:
        return open_ranks(path, names_in(path), options)
    if not path.name.endswith(".index.json"):
        return _open_file(path, options)
    # Any of the shards may say that it holds averages, so `weights` is applied to all of them together.
    shard_options = dataclasses.replace(options, weights=None)
    tensors, parts = open_index(path, lambda shard: _open_file(shard, shard_options))
    files = (location(path).open(), *(file for part in parts for file in part.files))
    averages = next((part.averages for part in parts if part.averages), None)
    whole = dataclasses.replace(parts[0], path=path.parent, tensors=tensors, files=files, averages=averages)
    return settle_averages(whole, options)


def _open_file(path: Path, options: ReadOptions) -> Checkpoint:
    """Open one file of tensors."""
    if refused.matches(path):
        refused.open_checkpoint(path, options)
    if path.name.endswith(".safetensors"):
        return safetensors_file.open_checkpoint(path, options)
    return torch_file.open_checkpoint(path, options)


def _open_averages(path: Path, file_name: str, options: ReadOptions) -> Checkpoint:
    """Open the averages that Diffusers' EMAModel saved."""
    checkpoint = open_tensors(path / file_name, dataclasses.replace(options, weights=None))
    averages = dataclasses.replace(
        checkpoint,
        name=path.name,
        path=path,
        trainer="diffusers",
        averages=Averages("Diffusers' EMAModel saved it, by its config.json"),
        pretrained=Pretrained(_DIFFUSERS, path),
    )
    return settle_averages(averages, options)


def _is_ema_model(path: Path) -> bool:
    """Return whether Diffusers' EMAModel wrote the configuration: then the weights are averages."""
    if not location(path / _CONFIG).info().is_file:
        return False
    config = read_json(location(path / _CONFIG).open(), _MAX_CONFIG_BYTES)
    return isinstance(config, dict) and "optimization_step" in config


def _model_file(base: str, names: Collection[str]) -> str | None:
    """Return the name of the file, or of the index, of the model called `base`; None where there is no such model."""
    pickled = BASES.get(base, base)
    whole, index = f"{base}.safetensors", f"{base}.safetensors.index.json"
    first = index if base == _DIFFUSERS and _is_twice(base, names) else whole
    candidates = (first, index, f"{pickled}.bin", f"{pickled}.bin.index.json")
    return next((name for name in candidates if name in names), None)


def _is_twice(base: str, names: Collection[str]) -> bool:
    """Return whether a folder holds a model as one file and in shards.

    `save_pretrained` leaves one of them of an earlier save, and loaders differ in which they take, as
    findings/transformers-older-model-beside-shards.sh shows: transformers the one file, diffusers the shards.
    """
    has_both = {f"{base}.safetensors", f"{base}.safetensors.index.json"} <= set(names)
    return has_both and any(name.startswith(f"{base}-") and _is_shard(name) for name in names)


def _twice_warning(base: str) -> str:
    taken, other = ("in shards", "as one file") if base == _DIFFUSERS else ("as one file", "in shards")
    return f"{base} is there {taken}, which from_pretrained loads and is taken, and {other}, which may be newer"


def _choose(path: Path, names: set[str], options: ReadOptions) -> tuple[str, str]:
    """Return the base name of the model in the folder, and the name of its file or index."""
    files = {base: name for base in BASES if (name := _model_file(base, names))}
    numbered = {match[0].rpartition(".")[0]: match[0] for name in sorted(names) if (match := _NUMBERED.search(name))}
    if numbered:
        models = {**{base: files[base] for base in ("model",) if base in files}, **numbered}
        if options.component in models:
            return "model", models[options.component]
        raise several_models_error(path, list(models), "model")
    if options.component is not None:
        raise one_model_error(path)
    if not files:
        if any(map(RANK_SHARD.search, names)):
            return "model", ""  # the folder itself: there is no index of them
        shard = min(filter(_is_shard, names), default=None)
        if shard is None:
            raise CheckpointError("holds no model", subject=path)
        index = f"{SHARD.sub('', shard)}.{shard.rpartition('.')[2]}.index.json"
        raise IncompleteCheckpoint(f"holds shards, but no {index}", subject=path, hint=CUT_SHORT)
    return next(iter(files.items()))


def _is_shard(name: str) -> bool:
    return SHARD.search(name) is not None


def _has_shards_alone(names: set[str]) -> bool:
    return any(map(_is_shard, names)) and not any(_model_file(base, names) for base in BASES)


def _trainer(names: set[str]) -> str | None:
    """Return who wrote a folder; None where nothing of it tells, as torch's writer for the Hub leaves weights alone."""
    if HF_METADATA in names:
        return "NeMo AutoModel"
    if any(name.startswith("random_states_") for name in names) and TRAINER_STATE not in names:
        return "accelerate"
    return "transformers" if names & {_CONFIG, ADAPTER_CONFIG, TRAINER_STATE} else None
