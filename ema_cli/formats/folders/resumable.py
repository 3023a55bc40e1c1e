"""A folder of the Hugging Face Trainer in which DeepSpeed saved, too: to go on from there, or because only it can.

Under ZeRO stage 3 the Trainer writes no weights of its own, or empty ones, unless DeepSpeed is told to gather them.
Then the model is in DeepSpeed's folder, and configuration and tokenizer lie beside that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Pretrained, Tensors
from ema_cli.errors import NoSuchWeights, option
from ema_cli.formats.folders import deepspeed, several
from ema_cli.formats.options import ReadOptions, one_model_error
from ema_cli.formats.reader import Reader
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.trainers.folders import DEEPSPEED_TAG, TRAINER_STATE
from ema_cli.formats.trainers.prefixes import Renamed
from ema_cli.formats.trainers.trainer_state import read_trainer_state
from ema_cli.storage.location import location, names_in

_OWN = (TRAINER_STATE, "config.json")  # one of which makes a folder a checkpoint, and not a run of DeepSpeed's


def matches(path: Path) -> bool:
    """Return whether the folder is one checkpoint of the Trainer, with one of DeepSpeed's in it."""
    return _inner(path, names_in(path)) is not None


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Open the Trainer's own model, or, where that is empty or the user asks for float32 weights, DeepSpeed's.

    Raises:
        NoSuchWeights: where float32 weights are asked for that are not the model's.
        EmaError: as the two readers do.
    """
    names = names_in(path)
    inner, again = _inner(path, names) or path, None
    if several.matches(path):
        own = several.open_checkpoint(path, dataclasses.replace(options, masters=False))
        is_empty = any(spec.shape == (0,) and name.endswith("weight") for name, spec in own.tensors.specs.items())
        if not options.masters and not is_empty:
            return deepspeed.with_note(own, names_in(inner))
        if own.pretrained is None or own.pretrained.base != "model":
            raise NoSuchWeights(
                "holds an adapter, whose float32 weights DeepSpeed keeps under other names, beside the base model's",
                subject=path,
                hint=f"leave out {option('masters', True)}",
            )
        again = None if is_empty else own.tensors
    elif options.component is not None:
        raise one_model_error(path)
    return _open_inner(path, inner, names, options, again)


def _open_inner(
    path: Path, inner: Path, names: Collection[str], options: ReadOptions, again: Tensors | None
) -> Checkpoint:
    """Open what DeepSpeed saved as the model of the Trainer's folder; `again`: the Trainer's own file of it."""
    checkpoint = deepspeed.open_checkpoint(inner, options)
    progress, files, trainer = checkpoint.progress, checkpoint.files, checkpoint.trainer
    if TRAINER_STATE in names:
        state = location(path / TRAINER_STATE).open()
        progress, files, trainer = read_trainer_state(state), (*files, state), "transformers"
    return dataclasses.replace(
        checkpoint,
        name=path.name,
        path=path,
        tensors=checkpoint.tensors if again is None else _with_copies(checkpoint.tensors, again),
        files=files,
        trainer=trainer,
        progress=progress if progress.clocks else checkpoint.progress,
        pretrained=Pretrained("model", path),
    )


def _with_copies(tensors: Tensors, again: Tensors) -> Tensors:
    """Return the tensors, with all of the Trainer's own file as copies of them; without any where one is no copy."""
    copies = {name: spec for name, spec in again.specs.items() if spec.dtype.averaged}
    for name, spec in copies.items():
        kept = tensors.specs.get(name)
        if kept is None or kept.shape != spec.shape or not (kept.dtype == spec.dtype or spec.dtype.is_narrow):
            return tensors
    own = Renamed(copies, dict(zip(copies, copies, strict=True)), again)
    return ShardedTensors(tensors.specs, dict.fromkeys(tensors.specs, 0), [tensors], [own])


def _inner(path: Path, names: Collection[str]) -> Path | None:
    """Return DeepSpeed's folder in the Trainer's; None where there is none, or several, as in a run of DeepSpeed's."""
    tags = [name for name in names if DEEPSPEED_TAG.search(name)]
    is_one = len(tags) == 1 and any(name in names for name in _OWN)
    return path / tags[0] if is_one and deepspeed.matches(path / tags[0]) else None


READER = Reader(matches, open_checkpoint, takes_component=True, takes_masters=True, files=False)
