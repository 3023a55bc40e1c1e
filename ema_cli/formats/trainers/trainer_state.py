"""The clocks in trainer_state.json of the Hugging Face Trainer."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ema_cli.checkpoint import MIN_CLOCK, Clock, Progress
from ema_cli.formats.json_text import read_json
from ema_cli.law.time import Unit
from ema_cli.storage.source import InputFile

_MAX_STATE_BYTES = 128 << 20  # it holds the whole log history


def read_trainer_state(file: InputFile) -> Progress:
    """Return the clocks in the Trainer's `trainer_state.json`."""
    # The Trainer logs a diverged loss as NaN, which is not JSON; the clocks beside it are good.
    state = read_json(file, _MAX_STATE_BYTES, constants=True)
    clocks: dict[Unit, Clock] = {}
    fields = (("global_step", Unit.BATCH), ("epoch", Unit.EPOCH), ("num_input_tokens_seen", Unit.TOKEN))
    for name, unit in fields:
        value: Any = state.get(name) if isinstance(state, dict) else None
        # Tokens stay 0 where the Trainer was not asked to count them.
        if type(value) not in (int, Fraction) or not (value == 0 or MIN_CLOCK <= value < 1 << 63):
            continue
        if value or unit is not Unit.TOKEN:
            clocks[unit] = Clock(Fraction(value), "sidecar")
    return Progress(clocks)
