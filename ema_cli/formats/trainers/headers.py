"""Where each trainer records clocks in the header of a safetensors file: a row for each trainer.

Read it as a page. A header maps text to text; a place descends into a text that is a JSON object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ema_cli.checkpoint import Progress
from ema_cli.dataclass import dataclass
from ema_cli.formats.json_text import parse_json
from ema_cli.formats.trainers.counters import take_counters
from ema_cli.formats.trainers.layout import ClockPlaces
from ema_cli.formats.trainers.layouts import PLAIN
from ema_cli.formats.trainers.progress import read_progress
from ema_cli.law.time import Unit

EP, BA = Unit.EPOCH, Unit.BATCH
_COUNT = re.compile(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class Header(ClockPlaces):
    """Where one trainer records clocks in a header; `mark` is a key that is there if the trainer wrote it."""

    trainer: str
    mark: str


# A loop of one's own, which counts under the names that it would have in a pickled dict.
PLAIN_HEADER = Header("", mark="", clocks=PLAIN.clocks, epochs="unknown")
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


def header_progress(
    metadata: Mapping[str, str], counters: Sequence[tuple[str, Unit]] = ()
) -> tuple[str | None, Progress]:
    """Return the trainer that wrote the metadata of a header, None where it is unknown, and the clocks in it.

    Args:
        metadata: those of the header.
        counters: places of clocks that the user names, with their units.

    Raises:
        CheckpointError: where there is no such clock.
    """
    row = next((row for row in HEADERS if row.mark in metadata), PLAIN_HEADER)
    keys = {place.partition("/")[0] for places in row.clocks.values() for place in places}
    progress = read_progress(row, {key: _value(metadata[key]) for key in keys if key in metadata})
    return row.trainer or None, take_counters(progress, numbers_in(metadata), counters) if counters else progress


def numbers_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the numbers and the JSON objects in the metadata of a header."""
    return {key: value for key, text in metadata.items() if (value := _value(text)) is not None}


def _value(text: str) -> Any:
    """Return a number or a JSON object that is written as text; None for any other text."""
    if _COUNT.fullmatch(text):
        return int(text)
    try:
        return parse_json(text.encode()) if text.startswith("{") else None
    except ValueError:
        return None
