"""A checkpoint that is one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, UsageError
from ema_cli.formats.adapters import header_settings
from ema_cli.formats.choice import AVERAGED_MODEL, settle_averages
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import SafetensorsWeights, open_file

METADATA_KEY = "ema_cli"  # under which our own outputs say how they were averaged
_LORA_KEY = "lora_adapter_metadata"
_PIECE_KEY = "DCP_SHARDING_INFO"  # under which torch's writer says which part of a tensor a file holds


def matches(path: Path) -> bool:
    """Return whether the name says safetensors."""
    return path.name.lower().endswith(".safetensors") and not path.is_dir()


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the file's header; what ema-cli itself averaged is recognised.

    Raises:
        CheckpointError: naming the file, the tensor and what is wrong.
        UsageError, RunError: where an option does not fit a file that holds one set of weights and nothing else.
    """
    weights = open_file(path)
    if _PIECE_KEY in weights.metadata:
        raise CheckpointError(
            f"{path}: holds pieces of tensors, as torch.distributed.checkpoint saves them in safetensors",
            hint="put them together first: torch.distributed.checkpoint's consolidate_safetensors_files",
        )
    averaged = _averaged(weights)
    if averaged is None and options.key is not None:
        raise UsageError(
            f"{path}: --key says where the weights are in a pickled file; this is safetensors",
            hint="leave out --key",
        )
    # Diffusers keeps rank and alpha of a LoRA here, and nowhere else.
    kept = {name: weights.metadata[name] for name in (_LORA_KEY,) if name in weights.metadata}
    checkpoint = Checkpoint(
        name=path.name,
        path=path,
        weights=weights,
        files=(weights.file,),
        format="safetensors",
        averaged=averaged,
        recipe=_recipe(weights.metadata),
        settings=header_settings(kept[_LORA_KEY]) if kept else {},
        header=kept,
    )
    return settle_averages(checkpoint, options)


def _recipe(metadata: Mapping[str, str]) -> Mapping[str, object] | None:
    if METADATA_KEY not in metadata:
        return None
    try:
        recipe = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        return {}
    entries = recipe.get("checkpoints") if isinstance(recipe, dict) else None
    # Anybody can write this key: what is not as we write it is not shown.
    return recipe if isinstance(entries, list) and all(map(_is_entry, entries)) else {}


def _is_entry(value: object) -> bool:
    match value:
        case [str(), str(), float(weight)]:
            return abs(weight) < 1e6
    return False


def _averaged(weights: SafetensorsWeights) -> str | None:
    """Return why these are averages already, None if they are not."""
    if METADATA_KEY in weights.metadata:
        return "ema-cli made it"
    if "n_averaged" in weights.specs:
        return AVERAGED_MODEL
    return None
