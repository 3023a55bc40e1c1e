"""The mark that ema-cli leaves in what it averaged: how it was made, as JSON, which it knows its own files by."""

from __future__ import annotations

import json
from collections.abc import Mapping

METADATA_KEY = "ema_cli"  # in the header of a safetensors file
RECORD = "ema_cli.json"  # in the archive of a file as torch.save writes it
MADE_HERE = "ema-cli made it"


def parse_recipe(text: str | bytes) -> Mapping[str, object]:
    """Return what a mark says; nothing of one that is not as we write it: anybody can."""
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    entries = recipe.get("checkpoints") if isinstance(recipe, dict) else None
    return recipe if isinstance(entries, list) and all(map(_is_entry, entries)) else {}


def _is_entry(value: object) -> bool:
    match value:
        case [str(), str(), float(weight)]:
            return abs(weight) < 1e6
    return False
