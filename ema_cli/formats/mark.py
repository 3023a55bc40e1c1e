"""The mark that ema-cli leaves in every average: how it was made, as JSON. By it ema-cli recognises its own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ema_cli.formats.json_text import unique
from ema_cli.law.laws import LAW_KEYS

METADATA_KEY = "ema_cli"  # in the header of a safetensors file
RECORD = "ema_cli.json"  # in the archive of a file as torch.save writes it, and in a folder whose files have no place
MAX_MARK_BYTES = 64 << 20
FOLDER_NAME, SUMS_NAME = "ema-manifest.json", "SHA256SUMS"  # the manifest and the sums in a folder
FILE_SUFFIX, SUMS_SUFFIX = ".manifest.json", ".sha256"  # the same beside a file, whose name comes before
SIGNATURE_NAME, SIGNATURE_SUFFIX = "model.sig", ".sig"  # the signature in a folder, and beside a file
LIKE_INPUT = "like_input"  # in a mark: the file is the newest checkpoint, with averages in the place of its weights
EXACT_LORA = "exact_lora"  # in a mark: the rank of A and B whose product is the average of an adapter's products
MERGED = "merge_into"  # in a mark: whether the average is of the whole model, an adapter merged into its base
DROP = "drop"  # in a mark: what of the newest checkpoint was left out
MADE_HERE = "ema-cli made it"
_LISTED = ("coefficients",)  # the weights themselves are in the list of checkpoints
_LAW = tuple(key for key in LAW_KEYS if key not in _LISTED)
_ASKED = (
    *_LAW,
    "from",
    "update_interval",
    "start",
    "stop",
    "last",
    "bias_correction",
    "dtype",
)


def asked_for(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the part of a manifest's recipe that a mark holds: the options that were given, as text."""
    given = {
        **recipe,
        "from": recipe["from"] if recipe["from"] == "stored" else None,
        "bias_correction": recipe["bias_correction"] or None,
    }
    return {name: str(given[name]) for name in _ASKED if given.get(name) is not None}


def described_by(path: Path) -> Path | None:
    """Return the file or folder whose manifest, sums or signature a path is by its name; None for any other path."""
    if path.name in (FOLDER_NAME, SUMS_NAME, SIGNATURE_NAME):
        return path.parent
    suffix = next((each for each in (FILE_SUFFIX, SUMS_SUFFIX, SIGNATURE_SUFFIX) if path.name.endswith(each)), "")
    return path.with_name(path.name.removesuffix(suffix)) if suffix and path.name != suffix else None


def parse_mark(text: str | bytes) -> Mapping[str, object]:
    """Return the content of a mark, empty where ema-cli cannot have written it: anybody can write one."""
    try:
        mark = json.loads(text, object_pairs_hook=unique)  # of two values, readers differ on which one counts
    except (ValueError, RecursionError):
        return {}
    entries = mark.get("checkpoints") if isinstance(mark, dict) else None
    return mark if isinstance(entries, list) and all(map(_is_entry, entries)) else {}


def is_of_training(mark: Mapping[str, object] | None) -> bool:
    """Return whether a mark is that of an average which was kept as the model trained, by `EMA.save`."""
    return mark is not None and "clock" in mark and not mark.get("checkpoints")


def _is_entry(value: object) -> bool:
    match value:
        case [str(), str(), float(weight)]:
            return abs(weight) < 1e6
    return False
