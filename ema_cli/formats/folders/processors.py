"""Processors beside a model, as LeRobot saves them: a JSON file for each, which names files with its tensors."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.formats.json_text import read_json
from ema_cli.formats.shards import is_plain_name
from ema_cli.storage.location import location

PROCESSORS = "*processor.json"
_STATE = "state_file"
_MAX_BYTES = 16 << 20


def processor_states(folder: Path, names: Collection[str]) -> list[str]:
    """Return the files with tensors that the processors in `folder` name, out of the `names` of its files."""
    states = []
    for name in sorted(fnmatch.filter(names, PROCESSORS)):
        try:
            processor = read_json(location(folder / name).open(), _MAX_BYTES)
        except CheckpointError:
            continue  # the model does not need it
        steps = processor.get("steps") if isinstance(processor, dict) else None
        for step in steps if isinstance(steps, list) else ():
            state = step.get(_STATE) if isinstance(step, dict) else None
            if isinstance(state, str) and is_plain_name(state) and state in names:
                states.append(state)
    return states
