"""Checkpoints that are folders with a model, or with several, each in a folder of its own: read as one, or one of them.

So sentence-transformers keeps its modules, Diffusers the models of a pipeline, and PEFT its second adapter. The name of
a tensor in such a folder begins with the folder: `2_Dense/linear.weight`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ema_cli.checkpoint import AdapterSettings, Averages, Checkpoint, Pretrained, Progress
from ema_cli.errors import CheckpointError, NoSuchWeights
from ema_cli.formats.folders import huggingface
from ema_cli.formats.folders.huggingface import left_out_warning
from ema_cli.formats.folders.places import Places, find_places
from ema_cli.formats.options import ReadOptions, no_component_error
from ema_cli.formats.reader import Reader
from ema_cli.formats.shards import PlacedTensors, join_parts
from ema_cli.formats.trainers.choice import AVERAGE_AGAIN, AVERAGED_AGAIN, WITHOUT_EMA
from ema_cli.formats.trainers.folders import AVERAGES_BESIDE, SAME_MODEL, TRAINER_STATE
from ema_cli.formats.trainers.names import AVERAGES_FOLDER, is_unfinished_name, is_weights_name, name_clocks
from ema_cli.formats.trainers.trainer_state import read_trainer_state
from ema_cli.storage.location import location, names_in
from ema_cli.storage.source import InputFile


def matches(path: Path) -> bool:
    """Return whether the folder holds a model, or models in folders of their own."""
    if huggingface.matches(path):
        return True
    try:
        return bool(find_places(path).models)
    except CheckpointError:  # what is wrong with it is said where it is opened, if it is a checkpoint at all
        return bool(name_clocks(path.name).clocks)


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of all models in the folder, or of the one that the user names.

    Raises:
        IncompleteCheckpoint: where its writer is not done.
        UsageError: where none has the name.
        NoSuchWeights: where the averages, or the raw weights, that the user asks for are not there.
        CheckpointError: for a model that cannot be read.
    """
    places = find_places(path)
    if not places.models:
        return _with_warnings(path, huggingface.open_checkpoint(path, options), (), places)
    chosen = _choose(path, places, options)
    inner = dataclasses.replace(options, component=None)
    if len(chosen) == 1 and (options.component is not None or not places.is_named):
        whole = _open_model(path, chosen[0], places, options)
    else:
        parts = {place: _open_model(path, place, places, _for_place(inner, path, place, places)) for place in chosen}
        whole = _join(path, parts)
    progress, files = _progress(path, whole)
    trainer = whole.trainer if places.trainer is None else places.trainer
    resumable = whole.resumable or any(file.path == path / TRAINER_STATE for file in files)
    whole = dataclasses.replace(
        whole, name=path.name, path=path, trainer=trainer, progress=progress, files=files, resumable=resumable
    )
    return whole if options.component is not None else _with_warnings(path, whole, chosen, places)


def _with_warnings(path: Path, checkpoint: Checkpoint, chosen: Sequence[str], places: Places) -> Checkpoint:
    """Say which folders with models, below the checkpoint's, are not read, and in which weights are missing."""
    tops = {place.partition("/")[0] for place in chosen}
    left_out = [
        f"{entry.name}/"
        for entry in location(path).entries()
        if entry.is_folder and entry.name not in tops and _may_be_part(entry.name) and _has_weights(entry.path)
    ]
    warnings = [left_out_warning(sorted(left_out))] if left_out else []
    if places.without_weights:
        named = ", ".join("this folder" if place == "." else f"{place}/" for place in places.without_weights)
        warnings.append(
            f"no weights in {named}, where its own files name a part of the model: the output has none either"
        )
    return dataclasses.replace(checkpoint, warnings=(*checkpoint.warnings, *warnings)) if warnings else checkpoint


def _has_weights(folder: Path) -> bool:
    return any(is_weights_name(name) for name in names_in(folder))


def _may_be_part(name: str) -> bool:
    """Return whether a folder of this name is neither averages, nor a checkpoint, nor the same model once more."""
    is_other = name.startswith(".") or name.endswith(AVERAGES_BESIDE) or AVERAGES_FOLDER.search(name)
    return not (is_other or name in SAME_MODEL or is_unfinished_name(name) or name_clocks(name).clocks)


def _choose(path: Path, places: Places, options: ReadOptions) -> Sequence[str]:
    """Return the folders of the models to read; "" is the checkpoint's own folder."""
    if options.component is None:
        return ("", *places.models) if places.has_own_model else places.models
    name = options.component if options.component in places.models else _raw_name(options.component)
    if name not in places.models:
        raise no_component_error(path, options.component, list(places.models))
    return (name,)


def _raw_name(name: str) -> str:
    return name.removesuffix(AVERAGES_BESIDE)


def _for_place(options: ReadOptions, path: Path, place: str, places: Places) -> ReadOptions:
    """Return the options for one of several models: those without averages are taken as they are."""
    if options.weights == "ema" and any(huggingface.matches(_averages_of(path / name)) for name in places.models):
        has_averages = place != "" and huggingface.matches(_averages_of(path / place))
        return options if has_averages else dataclasses.replace(options, weights=None)
    return options


def _averages_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{AVERAGES_BESIDE}")


def _open_model(path: Path, place: str, places: Places, options: ReadOptions) -> Checkpoint:
    """Open the model in one folder, raw or, where a folder beside it holds its averages, those."""
    if place == "" or not places.may_have_averages:
        checkpoint = huggingface.open_checkpoint(path / place, dataclasses.replace(options, component=None))
        return dataclasses.replace(checkpoint, progress=Progress()) if place else checkpoint
    raw, ema = path / place, _averages_of(path / place)
    has_raw, has_averages = huggingface.matches(raw), huggingface.matches(ema)
    if options.weights == "ema" and not has_averages:
        raise NoSuchWeights(f"holds no averages of '{place}'", subject=path, hint=WITHOUT_EMA)
    if options.weights == "raw" and not has_raw:
        raise NoSuchWeights(f"holds only averages of '{place}'", subject=path, hint=AVERAGE_AGAIN)
    names_averages = options.component is not None and options.component != place
    take_averages = options.weights == "ema" or (names_averages and options.weights is None) or not has_raw
    inner = dataclasses.replace(options, weights=None, component=None)
    checkpoint = huggingface.open_checkpoint(ema if take_averages else raw, inner)
    warnings, notes, averages = list(checkpoint.warnings), list(checkpoint.notes), checkpoint.averages
    if options.weights == "ema":
        averages = None
        warnings.append(AVERAGED_AGAIN)
    elif take_averages:
        averages = averages or Averages(f"'{ema.name}' holds averages, by its name")
    elif has_averages and options.weights is None:
        notes.append(f"raw weights taken; averages lie beside them, in '{ema.name}' (--weights ema)")
    return dataclasses.replace(checkpoint, warnings=tuple(warnings), notes=tuple(notes), averages=averages)


def _join(path: Path, parts: dict[str, Checkpoint]) -> Checkpoint:
    """Return several models as one checkpoint, whose names begin with the folders."""
    placed = [
        dataclasses.replace(part, tensors=PlacedTensors.of(place, part.tensors)) if place else part
        for place, part in parts.items()
    ]
    tensors = join_parts(path, placed)
    first = placed[0]
    values = {
        f"{place}/{name}" if place else name: value
        for place, part in parts.items()
        for name, value in part.adapter.values.items()
    }
    headers = {place: part.adapter.headers[""] for place, part in parts.items() if part.adapter.headers}
    own = parts.get("")
    bases = {place: part.pretrained.base for place, part in parts.items() if place and part.pretrained}
    return dataclasses.replace(
        first,
        tensors=tensors,
        files=tuple(file for part in parts.values() for file in part.files),
        averages=next((part.averages for part in parts.values() if part.averages), None),
        mark=next((part.mark for part in parts.values() if part.mark is not None), None),
        warnings=tuple(dict.fromkeys(warning for part in parts.values() for warning in part.warnings)),
        notes=tuple(dict.fromkeys(note for part in parts.values() for note in part.notes)),
        holds_both=any(part.holds_both for part in parts.values()),
        left_out=tuple(name for part in parts.values() for name in part.left_out),
        pretrained=Pretrained(own.pretrained.base if own and own.pretrained else "model", path, bases=bases),
        adapter=AdapterSettings(values, headers),
    )


def _progress(path: Path, whole: Checkpoint) -> tuple[Progress, tuple[InputFile, ...]]:
    """Return the clocks of the checkpoint, which the Trainer keeps in its own folder, and all files that were read."""
    state = path / TRAINER_STATE
    if any(file.path == state for file in whole.files) or not location(state).info().is_file:
        return whole.progress, whole.files
    file = location(state).open()
    return read_trainer_state(file), (*whole.files, file)


READER = Reader(matches, open_checkpoint, takes_component=True, files=False)
