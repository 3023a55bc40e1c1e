"""Where each trainer records clocks in the header of a safetensors file: a row for each trainer.

Read it as a page. A header maps text to text; a place descends into a text that is a JSON object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ema_cli.checkpoint import Progress
from ema_cli.formats.json_text import parse_json
from ema_cli.formats.trainers.layout import ClockPlaces
from ema_cli.formats.trainers.progress import read_progress
from ema_cli.law.time import Unit

EP, BA = Unit.EPOCH, Unit.BATCH
_COUNT = re.compile(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class Header(ClockPlaces):
    """Where one trainer records clocks in a header; `mark` is a key that is there if the trainer wrote it."""

    trainer: str
    mark: str


HEADERS = (
    # sd-scripts and musubi-tuner; the epochs are completed ones, also where an epoch is in progress.
    Header("kohya", mark="ss_steps", clocks={BA: ("ss_steps",), EP: ("ss_epoch",)}),
    Header(
        "ai-toolkit",
        mark="training_info",
        clocks={BA: ("training_info/step",), EP: ("training_info/epoch",)},
        epochs="in progress",
    ),
)


def header_progress(metadata: Mapping[str, str]) -> tuple[str | None, Progress]:
    """Return the trainer that wrote the metadata of a header, and the clocks in it; nothing where none is known."""
    row = next((row for row in HEADERS if row.mark in metadata), None)
    if row is None:
        return None, Progress()
    keys = {place.partition("/")[0] for places in row.clocks.values() for place in places}
    return row.trainer, read_progress(row, {key: _value(metadata[key]) for key in keys if key in metadata})


def _value(text: str) -> Any:
    """Return a number or a JSON object that is written as text; None for any other text."""
    if _COUNT.fullmatch(text):
        return int(text)
    try:
        return parse_json(text.encode()) if text.startswith("{") else None
    except ValueError:
        return None
