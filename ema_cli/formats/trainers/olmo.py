"""The clocks in `train/rank0.pt`, in which OLMo and OLMo-core keep the trainer's state beside a model in shards."""

from __future__ import annotations

from fractions import Fraction

from ema_cli.checkpoint import Clock, Progress
from ema_cli.formats.trainers.folders import OLMO_CLOCKS
from ema_cli.law.time import Unit


def olmo_progress(state: object) -> Progress:
    """Return the clocks in the trainer's state; the epoch there is the one that runs."""
    clocks: dict[Unit, Clock] = {}
    for unit, name in OLMO_CLOCKS.items():
        value = state.get(name) if isinstance(state, dict) else None
        if type(value) is int and 0 <= value < 1 << 63 and (value or unit is Unit.BATCH):
            clocks[unit] = Clock(Fraction(value), "sidecar")
    return Progress(clocks)
