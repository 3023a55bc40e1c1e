"""A checkpoint that is one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, UsageError
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import SafetensorsWeights, open_file

METADATA_KEY = "ema_cli"  # under which our own outputs say how they were averaged


def matches(path: Path) -> bool:
    """Return whether the name says safetensors."""
    return path.name.lower().endswith(".safetensors") and not path.is_dir()


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the file's header."""
    return from_weights(path, open_file(path), options, trainer=None)


def from_weights(path: Path, weights: SafetensorsWeights, options: ReadOptions, trainer: str | None) -> Checkpoint:
    """Return the checkpoint at `path`; what ema-cli itself averaged is recognised."""
    if options.key is not None:
        raise UsageError(
            f"{path}: --key says where the weights are in a pickled file; this is safetensors",
            hint="leave out --key",
        )
    own = METADATA_KEY in weights.metadata
    if options.weights == "ema" and not own:
        raise RunError(f"{path}: holds no averages", hint="leave out --weights ema")
    if options.weights == "raw" and own:
        raise RunError(f"{path}: holds averages only", hint="leave out --weights raw")
    return Checkpoint(
        name=path.name,
        path=path,
        weights=weights,
        files=weights.files,
        format="safetensors",
        trainer=trainer,
        averaged="ema-cli made it" if own and options.weights is None else None,
        notes=("these are averages, which are averaged again",) if own and options.weights == "ema" else (),
        recipe=_recipe(weights.metadata),
    )


def _recipe(metadata: Mapping[str, str]) -> Mapping[str, object] | None:
    if METADATA_KEY not in metadata:
        return None
    try:
        recipe = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        return {}
    return recipe if isinstance(recipe, dict) else {}
