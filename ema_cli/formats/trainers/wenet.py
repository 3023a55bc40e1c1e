"""wenet's clocks: in a .yaml beside each .pt."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Clock, Progress
from ema_cli.law.time import Unit
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

_SUFFIX = ".yaml"
_MAX_BYTES = 1 << 20
_COUNT = re.compile(r"^(epoch|step|accum_grad): (\d{1,18})$", re.MULTILINE)


def clocks_beside(path: Path) -> tuple[Progress, tuple[InputFile, ...]]:
    """Return the clocks in the .yaml beside the checkpoint, and that file; nothing where it is not wenet's.

    It records the epoch, from 0, that was just completed, and the step, of which `accum_grad` make one batch.
    """
    sidecar = location(path.with_suffix(_SUFFIX))
    if not sidecar.info().is_file:
        return Progress(), ()
    file = sidecar.open()
    text = file.read(0, file.size).decode("utf-8", "replace") if file.size <= _MAX_BYTES else ""
    fields = dict(_COUNT.findall(text))
    if not fields.keys() >= {"epoch", "step"}:
        return Progress(), ()
    steps_in_batch = max(int(fields.get("accum_grad", 1)), 1)
    completed = 0 if path.name.startswith("step_") else 1  # saved by steps, the epoch is in progress
    clocks = {
        Unit.BATCH: Clock(Fraction(int(fields["step"]), steps_in_batch), "sidecar"),
        Unit.EPOCH: Clock(Fraction(fields["epoch"]) + completed, "sidecar"),
    }
    return Progress(clocks), (file,)
