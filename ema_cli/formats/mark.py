"""The mark that ema-cli leaves in what it averaged: how it was made, as JSON, which it knows its own files by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ema_cli.law.laws import LAW_KEYS

METADATA_KEY = "ema_cli"  # in the header of a safetensors file
RECORD = "ema_cli.json"  # in the archive of a file as torch.save writes it
MADE_HERE = "ema-cli made it"
_ASKED = (*LAW_KEYS, "from", "update_interval", "start", "stop", "last", "bias_correction", "dtype")


def asked_for(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return what a mark says of the recipe in a manifest: the options of the average that were given, as texts."""
    told = {
        **recipe,
        "from": recipe["from"] if recipe["from"] == "stored" else None,
        "bias_correction": recipe["bias_correction"] or None,
    }
    return {name: str(told[name]) for name in _ASKED if told[name] is not None}


def parse_mark(text: str | bytes) -> Mapping[str, object]:
    """Return what a mark says; nothing of one that is not as we write it: anybody can."""
    try:
        mark = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    entries = mark.get("checkpoints") if isinstance(mark, dict) else None
    return mark if isinstance(entries, list) and all(map(_is_entry, entries)) else {}


def _is_entry(value: object) -> bool:
    match value:
        case [str(), str(), float(weight)]:
            return abs(weight) < 1e6
    return False
