"""A checkpoint that is a folder in the Hugging Face layout, as its Trainer and `save_pretrained` write them."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats import safetensors_file, torch_file
from ema_cli.formats.json_text import is_cut, parse_json
from ema_cli.formats.layouts import SHARD
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import open_file, open_shards
from ema_cli.input_file import InputFile
from ema_cli.units import Unit

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
STATE = "trainer_state.json"
_MAX_STATE_BYTES = 256 << 20  # it holds the whole log history


def matches(path: Path) -> bool:
    """Return whether the folder holds a model, or shards of one."""
    if not path.is_dir():
        return False
    try:
        names = {child.name for child in path.iterdir()}
    except OSError:
        return False  # whoever searches the folder says why
    return bool(names & {SINGLE, INDEX, PICKLED}) or any(map(_is_shard, names))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the headers of the model in the folder, and its clock from `trainer_state.json`."""
    if (path / SINGLE).exists():
        checkpoint = safetensors_file.from_weights(path, open_file(path / SINGLE), options)
    elif (path / INDEX).exists():
        checkpoint = safetensors_file.from_weights(path, open_shards(path / INDEX), options)
    elif (path / PICKLED).exists():
        checkpoint = torch_file.open_checkpoint(path / PICKLED, options)
    else:
        raise IncompleteCheckpoint(f"{path}: holds shards, but no {INDEX}", hint="its writer did not finish")
    progress = _read_state(path / STATE) if (path / STATE).exists() else checkpoint.progress
    return dataclasses.replace(checkpoint, name=path.name, path=path, trainer="transformers", progress=progress)


def _is_shard(name: str) -> bool:
    return SHARD.search(name) is not None and name.endswith(".safetensors")


def _read_state(path: Path) -> Progress:
    file = InputFile(path)
    if file.size > _MAX_STATE_BYTES:
        raise CheckpointError(f"{path}: {file.size} bytes are too many for a trainer's state")
    text = _without_constants(file.read(0, file.size))
    try:
        state = parse_json(text)
    except ValueError as error:
        kind = IncompleteCheckpoint if is_cut(text) else CheckpointError
        raise kind(f"{path}: not valid JSON: {error}") from error
    clocks: dict[Unit, Clock] = {}
    fields = (("global_step", Unit.BATCH), ("epoch", Unit.EPOCH), ("num_input_tokens_seen", Unit.TOKEN))
    for name, unit in fields:
        value: Any = state.get(name) if isinstance(state, dict) else None
        # Tokens stay 0 where the Trainer was not asked to count them.
        if type(value) in (int, Fraction) and 0 <= value < 1 << 63 and not (unit is Unit.TOKEN and value == 0):
            clocks[unit] = Clock(Fraction(value), "sidecar")
    return Progress(clocks)


def _without_constants(text: bytes) -> bytes:
    # The Trainer logs a diverged loss as NaN, which is not JSON; the clocks beside it are good.
    for constant in (b": NaN", b": Infinity", b": -Infinity"):
        text = text.replace(constant, b": null")
    return text
